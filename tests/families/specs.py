"""How a user imports each family at small size, and what its reference says must come out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from tests.families.references import (
    advflow,
    alphaflow,
    dmf,
    facm,
    imf,
    meanflow,
    pmf,
    soflow,
)
from tests.families.references.equations import State

HEADS = ("--heads", "2")
GUIDED = {"omega": 7.0, "t_min": 0.3, "t_max": 0.7}
GUIDANCE = ("--omega", "7", "--t-min", "0.3", "--t-max", "0.7")


@dataclass(frozen=True)
class Spec:
    """One kind of file of one family.

    Attributes:
        flags: of `cat-serve import` beside --vae and --class-names.
        step: arguments of the reference's step that those flags stand for.
        posterior: from what the step returns to what the VAE decodes; None: it returns pixels.
        published: those of the reference's `SIZES` that have a published file, each with options of its import.
    """

    name: str
    reference: ModuleType
    config: Any
    flags: tuple[str, ...] = ()
    step: dict[str, Any] = field(default_factory=dict)
    posterior: Callable[[State, Tensor], Tensor] | None = None
    published: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return str(self.reference.FAMILY)

    def state(self, seed: int = 0) -> State:
        """Draw the averaged weights."""
        return self.reference.state_dict(self.config, seed)

    def write(self, path: Path, state: State | None = None, **more: Any) -> Path:
        """Write the file that a user downloads; `more` is put into it."""
        averaged = self.state() if state is None else state
        content = self.reference.published(self.config, averaged, self.state(seed=1))
        torch.save(content | more, path)
        return path

    def beside(self, folder: Path) -> dict[str, Path]:
        """Write what lies beside the file where it is published; return it by options of the import."""
        if self.reference is not facm:
            return {}
        path = folder / "latents_stats.pt"
        torch.save(facm.random_stats(self.config, 0), path)
        return {"latent_stats": path}

    def expected(self, state: State, z: Tensor, class_id: list[int]) -> Tensor:
        """Take the reference's step in float64."""
        wide = {
            key: value if value.is_complex() else value.double() for key, value in state.items()
        }
        return self.reference.step(wide, self.config, z.double(), class_id, **self.step)


def sizes(*names: str) -> dict[str, dict[str, Any]]:
    """Return sizes whose import needs no option."""
    return {name: {} for name in names}


def scaled(reference: ModuleType) -> Callable[[State, Tensor], Tensor]:
    """Return latents * (1 / 0.18215)."""
    return lambda state, latents: latents * reference.LATENT_SCALE


SPECS = (
    Spec(
        "advflow", advflow, advflow.TINY, HEADS, posterior=scaled(advflow),
        published=sizes("B/2", "M/2", "L/2", "XL/2"),
    ),
    Spec(
        "advflow deep", advflow, advflow.TINY_DEEP, (*HEADS, "--repeats", "2"), posterior=scaled(advflow),
        published={"XL/2 56": {"repeats": 2}, "XL/2 112": {"repeats": 4}},
    ),
    Spec(
        "imf", imf, imf.TINY, GUIDANCE, GUIDED, posterior=lambda state, latents: imf.posterior(latents),
        published=sizes(*imf.SIZES),
    ),
    Spec(
        "pmf", pmf, replace(pmf.TINY, noise_scale=2.0), (*GUIDANCE, "--noise-scale", "2"), GUIDED,
        published=sizes(*pmf.SIZES),
    ),
    Spec("soflow", soflow, soflow.TINY, HEADS, posterior=scaled(soflow), published=sizes(*soflow.SIZES)),
    Spec(
        "dmf", dmf, dmf.TINY, (*HEADS, "--encoder-blocks", "3"), {"encoder_blocks": 3}, posterior=scaled(dmf),
        published=sizes(*dmf.SIZES),
    ),
    Spec(
        "dmf 512", dmf, replace(dmf.TINY, qk_norm=True), ("--encoder-blocks", "3"), {"encoder_blocks": 3},
        posterior=scaled(dmf),
    ),
    Spec("alphaflow", alphaflow, alphaflow.TINY, HEADS, posterior=alphaflow.posterior, published=sizes(*alphaflow.SIZES)),
    Spec("meanflow", meanflow, meanflow.TINY, HEADS, posterior=lambda state, latents: meanflow.posterior(latents), published=sizes(*meanflow.SIZES)),
    Spec("facm", facm, facm.TINY, posterior=lambda state, latents: facm.posterior(facm.random_stats(facm.TINY, 0), latents), published=sizes("XL/1")),
)  # fmt: skip
