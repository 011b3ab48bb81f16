"""An autoencoder in latent diffusion's layout (VA-VAE f16d32 is one) -> diffusers' AutoencoderKL.

Both are one architecture under two sets of names: levels of the decoder count from the other end, attention is made of
1 x 1 convolutions there and of linear layers here. Attention beside that of the middle lies where images of 256 px have a side
of 16 on the way, which for f16 is the lowest level.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cat_serve.errors import CheckpointError
from cat_serve.importers.pickled import as_state, read_pickled
from cat_serve.importers.tensors import Tensors

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

WHOSE = "an autoencoder in latent diffusion's layout"
# of its training alone: losses, and the vision model that VA-VAE is aligned with
LEFT_OUT = ("loss.", "foundation_model.", "linear_proj.", "model_ema.")
RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}  # fmt: skip
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
GROUPS = 32


def load_ldm_vae(path: Path) -> AutoencoderKL:
    """Read such a file, every tensor of it, in float32 and eval mode. Its latents are not scaled: factor 1.

    Raises:
        CheckpointError: no such file, one of another layout, or one that wants code executed.
    """
    import torch
    from diffusers import AutoencoderKL

    content = read_pickled(path)
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path.name} holds no state dict.")
    kept = {k: v for k, v in state.items() if not str(k).startswith(LEFT_OUT)}
    tensors = Tensors(as_state(kept, path.name), path, WHOSE)
    config = config_of(tensors)
    own = encoder(tensors, config) | decoder(tensors, config) | quantisation(tensors)
    tensors.finish()
    with torch.device("meta"):
        vae: AutoencoderKL = AutoencoderKL(**config)
    try:
        vae.load_state_dict(own, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} is not {WHOSE}: {error}") from error
    return vae.eval().requires_grad_(False)


def config_of(tensors: Tensors) -> dict[str, Any]:
    """Return what diffusers needs to build it, read off the shapes."""
    levels = tensors.count("encoder.down.")
    widths = [tensors.shape(f"encoder.down.{i}.block.0.conv1.bias", 1)[0] for i in range(levels)]
    attended = [f"encoder.down.{i}.attn.0.q.weight" in tensors for i in range(levels)]
    down = ["AttnDownEncoderBlock2D" if a else "DownEncoderBlock2D" for a in attended]
    up = ["AttnUpDecoderBlock2D" if a else "UpDecoderBlock2D" for a in reversed(attended)]
    return {
        "down_block_types": tuple(down),
        "up_block_types": tuple(up),
        "block_out_channels": tuple(widths),
        "layers_per_block": tensors.count("encoder.down.0.block."),
        "latent_channels": tensors.shape("post_quant_conv.weight", 4)[1],
        "norm_num_groups": min(GROUPS, widths[0]),
        "scaling_factor": 1.0,
    }


def encoder(tensors: Tensors, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the encoder under diffusers' names."""
    own = ends(tensors, "encoder") | middle(tensors, "encoder")
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"]
    for level in range(levels):
        own |= stage(tensors, f"encoder.down.{level}", f"encoder.down_blocks.{level}", layers)
        if level + 1 < levels:
            own |= moved(
                tensors, f"encoder.down.{level}.downsample.conv",
                f"encoder.down_blocks.{level}.downsamplers.0.conv",
            )  # fmt: skip
    return own


def decoder(tensors: Tensors, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return the decoder under diffusers' names; its levels are numbered from the lowest there."""
    own = ends(tensors, "decoder") | middle(tensors, "decoder")
    levels, layers = len(config["block_out_channels"]), config["layers_per_block"] + 1
    for level in range(levels):
        block = f"decoder.up_blocks.{levels - 1 - level}"
        own |= stage(tensors, f"decoder.up.{level}", block, layers)
        if level > 0:
            own |= moved(tensors, f"decoder.up.{level}.upsample.conv", f"{block}.upsamplers.0.conv")
    return own


def quantisation(tensors: Tensors) -> dict[str, Tensor]:
    """Return the two 1 x 1 convolutions around the latents."""
    names = ("quant_conv", "post_quant_conv")
    return {k: v for name in names for k, v in moved(tensors, name, name).items()}


def ends(tensors: Tensors, part: str) -> dict[str, Tensor]:
    """Return first convolution, last norm and last convolution."""
    pairs = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
    return _all_moved(tensors, f"{part}.", f"{part}.", pairs)


def middle(tensors: Tensors, part: str) -> dict[str, Tensor]:
    """Return the two residual blocks with attention between them."""
    own = attention(tensors, f"{part}.mid.attn_1", f"{part}.mid_block.attentions.0")
    for index in (0, 1):
        theirs, ours = f"{part}.mid.block_{index + 1}", f"{part}.mid_block.resnets.{index}"
        own |= resnet(tensors, theirs, ours)
    return own


def stage(tensors: Tensors, theirs: str, ours: str, layers: int) -> dict[str, Tensor]:
    """Return the residual blocks of one level, each with attention behind it where the level has that."""
    own: dict[str, Tensor] = {}
    for index in range(layers):
        own |= resnet(tensors, f"{theirs}.block.{index}", f"{ours}.resnets.{index}")
        if f"{theirs}.attn.{index}.q.weight" in tensors:
            own |= attention(tensors, f"{theirs}.attn.{index}", f"{ours}.attentions.{index}")
    return own


def resnet(tensors: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return one residual block; only where widths change there is a shortcut."""
    shortcut = f"{theirs}.nin_shortcut.weight" in tensors
    names = {k: v for k, v in RESNET.items() if shortcut or k != "nin_shortcut"}
    return _all_moved(tensors, f"{theirs}.", f"{ours}.", names)


def attention(tensors: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return one attention, its 1 x 1 convolutions as linear layers."""
    own = _all_moved(tensors, f"{theirs}.", f"{ours}.", ATTENTION)
    return {key: t.flatten(1) if t.dim() == 4 else t for key, t in own.items()}


def moved(tensors: Tensors, theirs: str, ours: str) -> dict[str, Tensor]:
    """Return weight and bias of one layer under another name."""
    return {f"{ours}.{leaf}": tensors.take(f"{theirs}.{leaf}") for leaf in ("weight", "bias")}


def _all_moved(
    tensors: Tensors, theirs: str, ours: str, names: Mapping[str, str]
) -> dict[str, Tensor]:
    own: dict[str, Tensor] = {}
    for name, new in names.items():
        own |= moved(tensors, theirs + name, ours + new)
    return own
