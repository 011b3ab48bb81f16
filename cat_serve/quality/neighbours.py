"""Nearest neighbours of features: precision and recall, density and coverage, and how near samples are to photographs.

Distances are Euclidean. Whole matrices of distances are never in memory: they are taken in pieces of `ROWS` rows, from
matrix products of centred features in float32, so that a squared distance is right to about 1e-6 of the squared length
of a feature. What is reported as a distance is taken again, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from cat_serve.errors import InvalidInput

ROWS = 1000
K_PRECISION = 3  # Kynkaanniemi et al., section 3
K_DENSITY = 5  # Naeem et al., section 4


@dataclass(frozen=True)
class Manifolds:
    """How two sets of features overlap.

    Attributes:
        precision, recall: shares 0..1 (Kynkaanniemi et al., arXiv 1904.06991).
        density, coverage: 0 and up, and 0..1 (Naeem et al., arXiv 2002.09797).
    """

    precision: float
    recall: float
    density: float
    coverage: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def nearest(queries: Tensor, references: Tensor, count: int = 1) -> tuple[Tensor, Tensor]:
    """Return the distances float64 [Q, count] of the nearest references, nearest first, and their indices int64.

    Raises:
        InvalidInput: there are fewer references than neighbours wanted.
    """
    _require(len(references), count)
    distances, indices = [], []
    for rows, squared in _pieces(queries, references):
        chosen = squared.topk(count, largest=False).indices
        exact = (queries[rows].unsqueeze(1) - references[chosen]).double().norm(dim=2)
        order = exact.argsort(dim=1)
        distances.append(exact.gather(1, order))
        indices.append(chosen.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def squared_radii(features: Tensor, counts: tuple[int, ...]) -> list[Tensor]:
    """Return for each k the squared distance [N] of every item to its k-th nearest other item."""
    _require(len(features) - 1, max(counts))
    parts = []
    for rows, squared in _pieces(features, features):
        own = torch.arange(rows.start, rows.stop)
        squared[own - rows.start, own] = torch.inf  # an item is no neighbour of its own
        parts.append(squared.topk(max(counts), largest=False).values)
    found = torch.cat(parts)
    return [found[:, k - 1] for k in counts]


def manifolds(
    generated: Tensor,
    real: Tensor,
    k: int = K_PRECISION,
    k_density: int = K_DENSITY,
    real_radii: list[Tensor] | None = None,
) -> Manifolds:
    """Compare two sets of features [N, W] by balls around each item, up to its k-th neighbour in its own set.

    Precision: the share of generated items inside a ball of a real one; recall: of real items inside a ball of a
    generated one (arXiv 1904.06991, equations 1 and 2; k = 3). Density: how many balls of real items hold a generated
    one, over k, on average; coverage: the share of real items whose ball holds a generated one (arXiv 2002.09797,
    equations 5 and 6; k = 5). All depend on the number of items: compare only what was measured with the same.

    Args:
        real_radii: `squared_radii(real, (k, k_density))`, where several sets are compared with one.

    Raises:
        InvalidInput: a set has no more than k items.
    """
    real_ball, real_wide = real_radii or squared_radii(real, (k, k_density))
    (generated_ball,) = squared_radii(generated, (k,))
    inside = torch.zeros(len(generated), dtype=torch.bool)
    reached = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    balls = 0
    for rows, squared in _pieces(generated, real):
        inside[rows] = (squared <= real_ball).any(dim=1)
        reached |= (squared <= generated_ball[rows].unsqueeze(1)).any(dim=0)
        wide = squared <= real_wide
        covered |= wide.any(dim=0)
        balls += int(wide.sum())
    return Manifolds(
        precision=inside.double().mean().item(),
        recall=reached.double().mean().item(),
        density=balls / (k_density * len(generated)),
        coverage=covered.double().mean().item(),
    )


def nearer_share(distances: Tensor, others: Tensor) -> float:
    """Return P(d < d') + P(d = d') / 2 for one distance of each set: Mann and Whitney's U over the number of pairs.

    With distances of samples and of unseen photographs to the nearest training photograph this is the statistic of
    Meehan et al. (arXiv 2004.05675, section 3): 0.5 if samples are as far from the training photographs as unseen
    photographs are, towards 1 if they are copies.
    """
    ordered = others.double().sort().values
    values = distances.double().contiguous()
    not_nearer = torch.searchsorted(ordered, values, right=False)
    not_nearer_or_equal = torch.searchsorted(ordered, values, right=True)
    share = 1 - (not_nearer + not_nearer_or_equal).double().mean() / (2 * len(ordered))
    return share.item()


def _pieces(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield rows of `a` and their squared distances to all of `b`, [rows, B]."""
    centre = b.mean(dim=0)
    centred = b - centre
    lengths = centred.square().sum(dim=1)
    for start in range(0, len(a), ROWS):
        rows = slice(start, min(start + ROWS, len(a)))
        x = a[rows] - centre
        squared = torch.addmm(lengths.unsqueeze(0), x, centred.T, alpha=-2)
        yield rows, squared.add_(x.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _require(there: int, wanted: int) -> None:
    if there < wanted:
        raise InvalidInput(
            f"{wanted} neighbours are wanted, and there are {max(there, 0)}.",
            hint="give more images",
        )
