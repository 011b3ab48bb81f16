"""Is it memorising? The nearest training photographs of samples, and of photographs that it never saw."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from training.evaluation.photographs import Photographs

if TYPE_CHECKING:
    from torch import Tensor

COUNT = 4
MAX_ROWS = 10


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of samples [N, 4] to their nearest training photographs, which ones those are, and of unseen [M].

    Attributes:
        unseen: None where there are no unseen photographs to compare with.
        searched: how many training photographs were looked at.
    """

    distances: np.ndarray
    indices: np.ndarray
    unseen: np.ndarray | None
    searched: int

    def figures(self) -> dict[str, Any]:
        """Return the medians, the smallest distances, and how often a sample is nearer than an unseen photograph."""
        import torch

        from cat_serve.quality.neighbours import nearer_share

        nearest = self.distances[:, 0]
        found: dict[str, Any] = {"searched": self.searched, "generated": _spread(nearest)}
        if self.unseen is not None:
            found["unseen"] = _spread(self.unseen)
            pair = (torch.from_numpy(nearest), torch.from_numpy(self.unseen))
            found["nearer_than_unseen"] = nearer_share(*pair)
            below = float(np.quantile(self.unseen, 0.01))
            found["below_unseen_percentile_1"] = float((nearest < below).mean())
        return found


def _spread(distances: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(distances, (0.05, 0.5, 0.95)).tolist()
    return {"least": float(distances.min()), "p5": low, "median": median, "p95": high}


def find(features: Tensor, train: Tensor, unseen: Tensor | None) -> Neighbours:
    """Find the nearest training photographs of samples, and how near unseen photographs are to theirs."""
    from cat_serve.quality.neighbours import nearest

    distances, indices = nearest(features, train, min(COUNT, len(train)))
    others = None if unseen is None else nearest(unseen, train)[0][:, 0].numpy()
    return Neighbours(distances.numpy(), indices.numpy(), others, len(train))


def draw_rows(
    made: Photographs, train: Photographs, found: Neighbours, title: str, path: Path
) -> None:
    """Draw samples with their nearest training photographs: left the first of each class, right the most similar one.

    At most ten classes, spread over all; samples without labels count as one class, of which ten are shown.
    """
    from training.evaluation.pictures import saved_figure

    rows = [_chosen(own, found.distances[:, 0]) for own in _groups(made.labels, len(made))]
    rows = [pair for group in rows for pair in group][:MAX_ROWS]
    count = found.indices.shape[1]
    with saved_figure(path, len(rows), 2 * (count + 1) + 1, (11.5, 1.12 * len(rows) + 0.6)) as (figure, axes):  # fmt: skip
        figure.suptitle(f"Samples (framed) and their nearest training photographs, {title}", fontsize=10)  # fmt: skip
        for line, pair in zip(axes, rows, strict=True):
            line[count + 1].set_visible(False)
            for sample, cells in zip(pair, (line[: count + 1], line[count + 2 :]), strict=True):
                _row(cells, made.images[sample], train, found.indices[sample], found.distances[sample])  # fmt: skip


def _groups(labels: np.ndarray | None, count: int) -> list[np.ndarray]:
    if labels is None:
        return [np.arange(count)]
    every = np.unique(labels)
    chosen = every[np.linspace(0, len(every) - 1, min(MAX_ROWS, len(every))).astype(int)]
    return [np.flatnonzero(labels == label) for label in chosen]


def _chosen(own: np.ndarray, distances: np.ndarray) -> list[tuple[int, int]]:
    """Return pairs of the i-th sample of a group and its i-th most similar one."""
    most_similar = own[distances[own].argsort(kind="stable")]
    return list(zip(own.tolist(), most_similar.tolist(), strict=True))[:MAX_ROWS]


def _row(cells: Any, sample: np.ndarray, train: Photographs, indices: np.ndarray, distances: np.ndarray) -> None:  # fmt: skip
    for cell, image in zip(cells, [sample, *train.images[indices]], strict=True):
        cell.imshow(image, interpolation="nearest")
        cell.set_xticks([])
        cell.set_yticks([])
    for spine in cells[0].spines.values():
        spine.set(edgecolor="tab:red", linewidth=2.5)
    for cell, distance in zip(cells[1:], distances, strict=True):
        cell.set_xlabel(f"{distance:.2f}", fontsize=8, labelpad=1)


def draw_distances(found: Neighbours, title: str, path: Path) -> None:
    """Draw how far samples, and unseen photographs, are from their nearest training photograph."""
    from training.evaluation.pictures import saved_figure

    nearest = found.distances[:, 0]
    every = nearest if found.unseen is None else np.concatenate([nearest, found.unseen])
    edges = np.linspace(0, np.quantile(every, 0.999), 80)
    with saved_figure(path, 1, 1, (7, 4)) as (_, axes):
        panel = axes[0, 0]
        panel.hist(nearest, edges, density=True, alpha=0.6, label="samples")
        if found.unseen is not None:
            panel.hist(found.unseen, edges, density=True, alpha=0.6, label="unseen photographs")
        panel.set_xlabel(f"distance to the nearest of {found.searched:,} training photographs ({title})")  # fmt: skip
        panel.set_ylabel("density")
        panel.legend()
