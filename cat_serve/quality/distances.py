"""Distances between two sets of features, as wholes: Frechet's and the kernel's.

Named after the network whose features they are taken of: on EfficientNet-Lite0 they are FD-EffNetLite0 and
KD-EffNetLite0, which cannot be compared with an FID or a KID.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from cat_serve.errors import InvalidInput

SEED = 0
SUBSETS = 100
SUBSET_SIZE = 1000


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean float64 [W] and covariance float64 [W, W] of features."""

    mean: np.ndarray
    covariance: np.ndarray

    def __post_init__(self) -> None:
        width = len(self.mean) if self.mean.ndim == 1 else -1
        if self.covariance.shape != (width, width):
            raise InvalidInput(
                f"A mean {list(self.mean.shape)} and a covariance {list(self.covariance.shape)} do not belong together."
            )

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric root of the covariance, float64 [W, W]; the longest part of a distance, so taken once."""
        values, vectors = np.linalg.eigh(self.covariance)
        root: np.ndarray = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
        return root

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Take the moments of features [N, W], N >= 2; the covariance is the unbiased one."""
        if len(features) < 2:
            raise InvalidInput(f"{len(features)} images have no covariance.", hint="2 or more")
        values = features.double().numpy()
        mean = values.mean(axis=0)
        centred = values - mean
        return cls(mean, centred.T @ centred / (len(values) - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Return |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) (Heusel et al., arXiv 1706.08500, equation 6).

    The trace of the root is taken from eigenvalues of symmetric matrices, tr (R S_2 R)^(1/2) with R = S_1^(1/2), which
    are real and, but for rounding, not negative, also where a covariance is singular. R is kept with `a`: of several
    distances to one reference, let that be `a`.

    Raises:
        InvalidInput: the features have different widths.
    """
    if len(a.mean) != len(b.mean):
        raise InvalidInput(f"Features of width {len(a.mean)} and {len(b.mean)} have no distance.")
    inner = a.root @ b.covariance @ a.root
    trace_of_root = np.sqrt(np.linalg.eigvalsh((inner + inner.T) / 2).clip(min=0)).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * trace_of_root)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of two sets of features [N, W] under a Gaussian each."""
    return frechet(Moments.of(reference), Moments.of(features))


def kernel_distance(features: Tensor, reference: Tensor) -> dict[str, float]:
    """Return mean and standard deviation over random subsets of the squared MMD with the kernel (<x, y> / W + 1)^3.

    Binkowski et al., arXiv 1801.01401, section 4 (the KID, on Inception's features), by torchmetrics: 100 subsets of
    1,000, or of as many as there are, always the same ones.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET_SIZE, len(features), len(reference))
    identity = nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps the features, which are there anyway
        metric = KernelInceptionDistance(feature=identity, subsets=SUBSETS, subset_size=size)
    metric.update(reference, real=True)
    metric.update(features, real=False)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}


def pair_distance(features: Tensor, labels: np.ndarray) -> float:
    """Return the mean Euclidean distance of two different items of one class, averaged over the classes.

    Args:
        features: [N, W]; labels: int64 [N]; classes with one item are left out.

    Raises:
        InvalidInput: no class has two items.
    """
    distances = []
    every, counts = np.unique(labels, return_counts=True)
    if not (counts > 1).any():
        raise InvalidInput("No class has two images whose distance could be taken.")
    for label in every[counts > 1]:
        own = features[torch.from_numpy(labels == label)].double()
        count = len(own)
        distances.append(torch.cdist(own, own).sum().item() / (count * (count - 1)))
    return float(np.mean(distances))
