"""Latent diffusion's autoencoder, written from its layout alone, to hold the conversion of its names to.

GroupNorm of 32 groups with eps 1e-6, SiLU, 3 x 3 convolutions, nearest up-sampling, down-sampling padded at the right and below,
and single-head attention of 1 x 1 convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

State = dict[str, Tensor]


def conv(s: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = s[f"{name}.weight"]
    return functional.conv2d(
        x, weight, s[f"{name}.bias"], stride, 0 if stride == 2 else weight.shape[-1] // 2
    )


def norm(s: State, name: str, x: Tensor) -> Tensor:
    return functional.group_norm(x, 32, s[f"{name}.weight"], s[f"{name}.bias"], 1e-6)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def resnet(s: State, name: str, x: Tensor) -> Tensor:
    h = conv(s, f"{name}.conv1", silu(norm(s, f"{name}.norm1", x)))
    h = conv(s, f"{name}.conv2", silu(norm(s, f"{name}.norm2", h)))
    return h + (conv(s, f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in s else x)


def attend(s: State, name: str, x: Tensor) -> Tensor:
    h = norm(s, f"{name}.norm", x)
    q, k, v = (conv(s, f"{name}.{which}", h).flatten(2) for which in "qkv")
    weights = torch.softmax(q.transpose(1, 2) @ k / q.shape[1] ** 0.5, dim=2)
    return x + conv(s, f"{name}.proj_out", (v @ weights.transpose(1, 2)).reshape(x.shape))


def level(s: State, name: str, x: Tensor) -> Tensor:
    index = 0
    while f"{name}.block.{index}.conv1.weight" in s:
        x = resnet(s, f"{name}.block.{index}", x)
        if f"{name}.attn.{index}.q.weight" in s:
            x = attend(s, f"{name}.attn.{index}", x)
        index += 1
    return x


def middle(s: State, part: str, x: Tensor) -> Tensor:
    x = resnet(s, f"{part}.mid.block_1", x)
    return resnet(s, f"{part}.mid.block_2", attend(s, f"{part}.mid.attn_1", x))


def moments(s: State, levels: int, images: Tensor) -> Tensor:
    """Encode images to mean and log-variance, [B, 2C, h, w]."""
    x = conv(s, "encoder.conv_in", images)
    for index in range(levels):
        x = level(s, f"encoder.down.{index}", x)
        if index + 1 < levels:
            x = conv(s, f"encoder.down.{index}.downsample.conv", functional.pad(x, (0, 1, 0, 1)), 2)
    x = silu(norm(s, "encoder.norm_out", middle(s, "encoder", x)))
    return conv(s, "quant_conv", conv(s, "encoder.conv_out", x))


def decoded(s: State, levels: int, latents: Tensor) -> Tensor:
    """Decode latents to images."""
    x = middle(s, "decoder", conv(s, "decoder.conv_in", conv(s, "post_quant_conv", latents)))
    for index in reversed(range(levels)):
        x = level(s, f"decoder.up.{index}", x)
        if index > 0:
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = conv(s, f"decoder.up.{index}.upsample.conv", x)
    return conv(s, "decoder.conv_out", silu(norm(s, "decoder.norm_out", x)))


def layout(ch: int, mult: tuple[int, ...], channels: int, layers: int = 2) -> dict[str, tuple[int, ...]]:  # fmt: skip
    """Return keys and shapes; the lowest level has attention, as in f16d32."""
    keys: dict[str, tuple[int, ...]] = {}
    last = len(mult) - 1

    def convolution(name: str, into: int, out: int, side: int = 3) -> None:
        keys.update({f"{name}.weight": (out, into, side, side), f"{name}.bias": (out,)})

    def group(name: str, width: int) -> None:
        keys.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def residual(name: str, into: int, out: int) -> None:
        group(f"{name}.norm1", into)
        convolution(f"{name}.conv1", into, out)
        group(f"{name}.norm2", out)
        convolution(f"{name}.conv2", out, out)
        if into != out:
            convolution(f"{name}.nin_shortcut", into, out, 1)

    def attended(name: str, width: int) -> None:
        group(f"{name}.norm", width)
        for which in ("q", "k", "v", "proj_out"):
            convolution(f"{name}.{which}", width, width, 1)

    def mid(part: str, width: int) -> None:
        residual(f"{part}.mid.block_1", width, width)
        attended(f"{part}.mid.attn_1", width)
        residual(f"{part}.mid.block_2", width, width)

    convolution("encoder.conv_in", 3, ch)
    width = ch
    for index, factor in enumerate(mult):
        for block in range(layers):
            residual(f"encoder.down.{index}.block.{block}", width, ch * factor)
            width = ch * factor
            if index == last:
                attended(f"encoder.down.{index}.attn.{block}", width)
        if index < last:
            convolution(f"encoder.down.{index}.downsample.conv", width, width)
    mid("encoder", width)
    group("encoder.norm_out", width)
    convolution("encoder.conv_out", width, 2 * channels)
    convolution("quant_conv", 2 * channels, 2 * channels, 1)
    convolution("post_quant_conv", channels, channels, 1)
    convolution("decoder.conv_in", channels, width)
    mid("decoder", width)
    for index in reversed(range(len(mult))):
        for block in range(layers + 1):
            residual(f"decoder.up.{index}.block.{block}", width, ch * mult[index])
            width = ch * mult[index]
            if index == last:
                attended(f"decoder.up.{index}.attn.{block}", width)
        if index > 0:
            convolution(f"decoder.up.{index}.upsample.conv", width, width)
    group("decoder.norm_out", width)
    convolution("decoder.conv_out", width, 3)
    return keys


def drawn(keys: dict[str, tuple[int, ...]]) -> State:
    """Draw a state in which nothing vanishes."""
    rng = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in keys.items():
        noise = torch.randn(*shape, generator=rng)
        fan_in = torch.Size(shape[1:]).numel()
        state[key] = noise / fan_in**0.5 if len(shape) == 4 else 0.1 * noise
        if "norm" in key and key.endswith("weight"):
            state[key] = 1 + state[key]
    return state
