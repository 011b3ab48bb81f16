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
PITCH = 1.2  # of rows, in images: room for a line of text


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

    At most ten classes, spread over all; where there are fewer, or no labels, more rows of each.
    """
    from matplotlib.patches import Rectangle

    from training.evaluation.pictures import saved_figure

    rows = chosen_rows(made.labels, found.distances[:, 0])
    across = found.indices.shape[1] + 1
    size = (2 * across + 1, PITCH * len(rows) + 0.6)
    with saved_figure(path, 1, 1, size) as (_, axes):
        panel = axes[0, 0]  # one panel with all images in it: a hundred panels take a minute
        for row, pair in enumerate(rows):
            top = row * PITCH
            for sample, left in zip(pair, (0.0, across + 0.5), strict=True):
                images = [made.images[sample], *train.images[found.indices[sample]]]
                for place, image in enumerate(images):
                    x = left + place
                    panel.imshow(image, extent=(x, x + 0.95, top + 0.95, top), interpolation="nearest")  # fmt: skip
                panel.add_patch(Rectangle((left, top), 0.95, 0.95, fill=False, color="tab:red", linewidth=3))  # fmt: skip
                for place, distance in enumerate(found.distances[sample], start=1):
                    panel.text(left + place + 0.475, top + 0.98, f"{distance:.2f}", ha="center", va="top", fontsize=9)  # fmt: skip
        panel.set(xlim=(-0.05, 2 * across + 0.5), ylim=(len(rows) * PITCH, -0.05), aspect="auto")  # fmt: skip
        panel.set_axis_off()
        panel.set_title(f"samples (framed) and their nearest of {found.searched:,} training photographs, distances in {title}\nleft: the first of each class; right: the most similar of each class")  # fmt: skip


def chosen_rows(labels: np.ndarray | None, nearest: np.ndarray) -> list[tuple[int, int]]:
    """Return for every row of the picture two samples of one class: the i-th, and the i-th most similar one."""
    groups = _groups(labels, len(nearest))
    each = MAX_ROWS // len(groups)
    rows = []
    for own in groups:
        most_similar = own[nearest[own].argsort(kind="stable")]
        rows += list(zip(own.tolist(), most_similar.tolist(), strict=True))[:each]
    return rows


def _groups(labels: np.ndarray | None, count: int) -> list[np.ndarray]:
    """Return the samples of each of at most ten classes."""
    if labels is None:
        return [np.arange(count)]
    every = np.unique(labels)
    chosen = every[np.linspace(0, len(every) - 1, min(MAX_ROWS, len(every))).astype(int)]
    return [np.flatnonzero(labels == label) for label in chosen]


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
