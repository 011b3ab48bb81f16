"""The served checkpoint: one safetensors file with weights, configuration, class names and VAE inside.

Tensors are named `generator.*` and `vae.*`; the JSON under the metadata key `cat_serve` holds the rest.
Pickles are never read here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import written_whole
from cat_serve.model.config import GeneratorConfig
from cat_serve.model.generator import Generator
from cat_serve.model.vae import KL, load_vae, vae_class

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from cat_serve.model.vae import Vae

FORMAT = "cat-serve-checkpoint-1"
METADATA_KEY = "cat_serve"


@dataclass
class Checkpoint:
    """A generator with everything that is needed to serve it.

    Attributes:
        name: the model's name, lower case, no slash.
        generator: in eval mode, float32, `w_avg` inside.
        vae: in eval mode, float32; an AutoencoderTiny if the model is decoded by one.
        class_names: one per class.
        training: what made the weights (configuration, images seen, data set and its licence).
    """

    name: str
    generator: Generator
    vae: Vae
    class_names: tuple[str, ...]
    training: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint beside its name and rename it."""
    tensors = {
        f"{part}.{key}": tensor.detach().contiguous()
        for part, module in (("generator", checkpoint.generator), ("vae", checkpoint.vae))
        for key, tensor in module.state_dict().items()
    }
    description = {
        "format": FORMAT,
        "name": checkpoint.name,
        "generator": checkpoint.generator.config.to_dict(),
        "vae_class": type(checkpoint.vae).__name__,
        "vae": {k: v for k, v in checkpoint.vae.config.items() if not k.startswith("_")},
        "class_names": list(checkpoint.class_names),
        "training": checkpoint.training,
    }
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(description)})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint strictly: every tensor consumed, none missing.

    Raises:
        CheckpointError: no such file, damaged, another format, or keys and shapes that do not fit.
    """
    description, tensors = read_safetensors(path)
    if description.get("format") != FORMAT:
        raise CheckpointError(
            f"{path.name} has format {description.get('format')!r}, not {FORMAT!r}.",
            hint="checkpoints are written by python -m training.train",
        )
    try:
        generator = Generator(GeneratorConfig.from_dict(description["generator"]))
        vae = _build_vae(description.get("vae_class", KL), description["vae"])
        name, training = description["name"], description["training"]
        class_names = tuple(description["class_names"])
    except (InvalidInput, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} has an unusable description: {error!r}") from error
    fill(generator, tensors, "generator.", path)
    fill(vae, tensors, "vae.", path)
    if tensors:
        raise CheckpointError(
            f"{path.name} holds tensors that belong nowhere: {sorted(tensors)[:5]}."
        )
    return Checkpoint(
        name=name,
        generator=generator.eval().requires_grad_(False),
        vae=vae.eval().requires_grad_(False),
        class_names=class_names,
        training=training,
    )


def _build_vae(kind: str, config: dict[str, Any]) -> Vae:
    """Build a VAE from its configuration; what the class notes for itself is no argument of it."""
    own = {key: value for key, value in config.items() if key != "block_out_channels" or kind == KL}
    vae: Vae = vae_class(kind)(**own)
    return vae


def open_vae(path: Path) -> AutoencoderKL:
    """Load the VAE inside a checkpoint of this project, or one of diffusers (see `load_vae`).

    Raises:
        CheckpointError: there is none, or the checkpoint has a decoder that encodes nothing.
    """
    if not path.is_file() and path.suffix != ".safetensors":
        return load_vae(path)
    vae = load_checkpoint(path).vae
    if type(vae).__name__ != KL:
        raise CheckpointError(
            f"{path.name} holds an {type(vae).__name__}, which has no posterior to learn from.",
            hint="name the VAE, or the checkpoint, that the generator was trained with",
        )
    return cast("AutoencoderKL", vae)


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the JSON description and the tensors of one of this project's safetensors files."""
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {key: stream.get_tensor(key) for key in stream.keys()}  # noqa: SIM118
        description = json.loads(metadata[METADATA_KEY])
        if not isinstance(description, dict):
            raise ValueError(f"the description is a {type(description).__name__}")
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is damaged, or no checkpoint of this project: {error}"
        ) from error
    return description, tensors


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Move the tensors named `prefix*` out of `tensors` into `module`; keys and shapes must match."""
    own: Mapping[str, Tensor] = {
        key.removeprefix(prefix): tensors.pop(key)
        for key in list(tensors)
        if key.startswith(prefix)
    }
    try:
        module.load_state_dict(own, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path.name} does not fit its own configuration: {error}") from error


def save_module(path: Path, module: nn.Module, description: Mapping[str, Any]) -> None:
    """Write one module's weights with a JSON description (the discriminator beside its generator)."""
    tensors = {key: tensor.detach().contiguous() for key, tensor in module.state_dict().items()}
    with written_whole(path) as temporary:
        save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(dict(description))})


def parameter_count(module: nn.Module) -> int:
    """Return the number of learned values; buffers such as `w_avg` are not counted."""
    return sum(parameter.numel() for parameter in module.parameters())
