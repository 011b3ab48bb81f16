"""The architectures of other families for `export.random_checkpoint`: which parts each has, at any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cat_serve.model.one_step import OneStep
    from cat_serve.model.one_step_config import OneStepConfig
    from cat_serve.model.vae import LatentAffine

Affine = Literal["scalar", "per channel", "per position"]
Order = Callable[[int], Sequence[tuple[int, int]]]

PIXEL_PATCHES = 16  # along a side, at 256 and at 512 px
GATED: dict[str, Any] = {
    "norm": "rms", "conditioning": "gates", "ffn": "swiglu", "qk_norm": True, "bias": False,
    "class_tokens": 8, "constant_tokens": 12,
}  # fmt: skip


def one_table(depth: int) -> list[tuple[int, int]]:
    """Run every block once, under one table."""
    return [(index, 0) for index in range(depth)]


def two_rounds(depth: int) -> list[tuple[int, int]]:
    """Run all blocks twice, each round under its own table."""
    return [(index, table) for table in (0, 1) for index in range(depth)]


def two_halves(depth: int) -> list[tuple[int, int]]:
    """Run the last two sevenths under a second table."""
    first = depth - max(1, 2 * depth // 7)
    return [(index, int(index >= first)) for index in range(depth)]


@dataclass(frozen=True)
class RandomFamily:
    """What a family's transformer is made of.

    Attributes:
        patch: of latents; models of pixels have 16 patches along a side.
        settings: of `OneStepConfig`, but for sizes.
        affine: kind of scale between its latents and the VAE's; None: it makes pixels.
    """

    title: str
    patch: int = 2
    order: Order = one_table
    settings: Mapping[str, Any] = field(default_factory=dict)
    affine: Affine | None = "scalar"

    @property
    def is_pixels(self) -> bool:
        return self.affine is None

    def config(
        self, sizes: Mapping[str, int], side: int, channels: int, classes: int
    ) -> OneStepConfig:
        """Return the configuration for these depth, width and heads."""
        from cat_serve.model.one_step_config import OneStepConfig

        width = sizes["width"]
        swiglu = self.settings.get("ffn") == "swiglu"
        return OneStepConfig.from_dict({
            "width": width, "heads": sizes["heads"], "hidden": 8 * width // 3 if swiglu else 4 * width,
            "patch": side // PIXEL_PATCHES if self.is_pixels else self.patch,
            "size": side, "channels": channels, "num_classes": classes, "order": self.order(sizes["depth"]),
            **self.settings,
        })  # fmt: skip


FLOW: dict[str, Any] = {"skip": 1.0, "gain": -1.0}
LIGHTNING: dict[str, Any] = {"norm": "rms", "ffn": "swiglu", "qk_norm": True, "rope": "grid", "skip": 1.0}  # fmt: skip
FAMILIES = {
    "advflow": RandomFamily("AdvFlow"),
    "advflow-deep": RandomFamily("AdvFlow, blocks repeated", order=two_rounds, settings={"head_table": 2}),
    "imf": RandomFamily("iMF", settings={**GATED, **FLOW, "rope": "sequence", "positions": False}, affine="per channel"),
    "pmf": RandomFamily("pMF", settings={**GATED, "rope": "grid", "z_scale": 2.0}, affine=None),
    "dmf": RandomFamily("DMF", order=two_halves, settings={**FLOW, "head_table": 1}),
    "alphaflow": RandomFamily("alpha-Flow", settings=FLOW, affine="per position"),
    "facm": RandomFamily("FACM", patch=1, settings=LIGHTNING, affine="per channel"),
}  # fmt: skip


def random_generator(config: OneStepConfig, seed: int) -> OneStep:
    """Draw a generator whose every part matters: gates and modulation of trained size, conditioning of N(0, 1)."""
    import torch

    from cat_serve.model.one_step import OneStep

    torch.manual_seed(seed)
    generator = OneStep(config).eval().requires_grad_(False)
    for name, tensor in generator.named_buffers():
        if name != "rope":
            tensor.normal_(std=1.0 if name in ("tables", "class_embedding") else 0.5)
    for name, tensor in generator.named_parameters():
        if "gate" in name or name.endswith("bias"):
            tensor.normal_(std=0.2)
    return generator


def affine_of(family: RandomFamily, config: OneStepConfig) -> LatentAffine:
    """Return a scale of the family's kind, near that of SD-VAE's latents."""
    import torch

    from cat_serve.model.vae import LatentAffine

    shapes: dict[Affine, tuple[int, ...]] = {
        "scalar": (1, 1, 1),
        "per channel": (config.channels, 1, 1),
        "per position": config.z_shape,
    }
    assert family.affine is not None
    shape = shapes[family.affine]
    return LatentAffine(0.1 * torch.randn(shape), 5 + torch.rand(shape))
