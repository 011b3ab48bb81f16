"""CAT's objective. Pairs share their label; every loss is a mean over the K scales and the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cat_serve.errors import InvalidInput
from cat_serve.model.layers import at_least_float32
from training.augment import Resize, resize
from training.share import Share

PENALTY_SIGMA = 0.01
PENALTY_EVERY = 4


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Relativistic pairing loss for D: softplus(-(r_k - f_k)). GAT, section 3; CAT, K logits [B, K]."""
    return functional.softplus(logits_fake - logits_real).mean()


def generator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Relativistic pairing loss for G: softplus(-(f_k - r_k)), the real logits detached."""
    return functional.softplus(logits_real.detach() - logits_fake).mean()


def approximate_penalty(
    logits: Tensor, logits_noised: Tensor, sigma: float = PENALTY_SIGMA
) -> Tensor:
    """Finite-difference R1 (on real) or R2 (on fake): E[((D(x) - D(x + sigma n)) / sigma)^2].

    n is standard normal, sigma 0.01, D the sum of the K logits, so that for a linear D(x) = <a, x> the mean
    is |a|^2. The gradient flows through both terms.

    Args:
        logits, logits_noised: float32 [B, K] of the same samples.
    """
    difference = at_least_float32(logits).sum(dim=1) - at_least_float32(logits_noised).sum(dim=1)
    return (difference / sigma).square().mean()


def label_loss(class_logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the label among all classes' logits, a mean over the K scales (an addition to the method).

    Pairs share their label, so that nothing else asks how D judges a real image under a wrong label. This
    does: -log softmax_c(D_k(x, c)) at c = y.

    Args:
        class_logits: float32 [B, K, num_classes]; y: int64 [B].
    """
    return functional.cross_entropy(
        class_logits.flatten(0, 1), y.repeat_interleave(class_logits.shape[1])
    )


def add_penalty_noise(
    images: list[Tensor],
    generator: torch.Generator,
    sigma: float = PENALTY_SIGMA,
    share: Share | None = None,
) -> list[Tensor]:
    """Return x + sigma n for every scale; the noise is added after augmentation and resizing.

    Args:
        share: which samples of the batch these are; the noise is drawn for all of it.
    """
    noised = []
    for x in images:
        part = share or Share.whole(len(x))
        noise = torch.randn(part.total, *x.shape[1:], generator=generator, dtype=x.dtype)
        noised.append(x + sigma * noise[part.rows].to(x.device))
    return noised


@dataclass(frozen=True)
class Consistency:
    """Options of the cross-scale consistency loss; the defaults are the method's."""

    weight: float = 0.1
    detach_anchor: bool = False
    at_scale: bool = False
    omegas: Literal["inverse", "uniform"] = "inverse"

    def __post_init__(self) -> None:
        if self.omegas not in ("inverse", "uniform"):
            raise InvalidInput(f"omegas {self.omegas!r} are neither 'inverse' nor 'uniform'.")


def consistency_loss(
    stages: Tensor, options: Consistency, scales: tuple[int, ...], method: Resize = "area"
) -> Tensor:
    """L_cons = 1/(K-1) * sum_{k<K} omega_k * MSE(h_k, h_K), omega_k = 1/(K-k).

    Options beyond the method: a detached anchor h_K, the distance taken after resizing both to scale k,
    and omega_k = 1.

    Args:
        stages: un-augmented h_1..h_K, [B, K, C, H, W].
        scales: the sides of the scales, used by `at_scale`.
    """
    count = stages.shape[1]
    anchor = stages[:, -1].detach() if options.detach_anchor else stages[:, -1]
    total = torch.zeros((), device=stages.device, dtype=stages.dtype)
    for k in range(1, count):
        h, target = stages[:, k - 1], anchor
        if options.at_scale:
            h, target = (resize(x, scales[k - 1], method) for x in (h, anchor))
        omega = 1.0 if options.omegas == "uniform" else 1 / (count - k)
        total = total + omega * functional.mse_loss(h, target)
    return total / max(count - 1, 1)
