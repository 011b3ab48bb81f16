"""The pictures of an evaluation: samples, paths between them, truncation, confusion, and figures over psi."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from training.evaluation.photographs import Photographs
from training.evaluation.sampling import Subject

GRID_COLUMNS = 16
STRIP_COLUMNS = 12
MAX_CLASSES = 10
PSIS = (0.0, 0.25, 0.5, 0.75, 1.0)
PER_PSI = 3  # seeds
# what is drawn over psi, in two panels
SHARES = ("recognised", "precision", "recall", "coverage")


@contextmanager
def saved_figure(path: Path, rows: int, columns: int, size: tuple[float, float]) -> Iterator[tuple[Any, np.ndarray]]:  # fmt: skip
    """Yield a figure and its panels [rows, columns]; write it as PNG, whole or not at all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from cat_serve.files import written_whole

    figure, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    try:
        yield figure, axes
        with written_whole(path) as temporary:
            figure.savefig(temporary, dpi=100, format="png")
    finally:
        pyplot.close(figure)


def spread_classes(num_classes: int) -> np.ndarray:
    """Return at most ten classes, spread over all."""
    return np.unique(np.linspace(0, num_classes - 1, min(num_classes, MAX_CLASSES)).round().astype(int))  # fmt: skip


def save_samples(made: Photographs, path: Path) -> None:
    """Write a grid of the first samples: a row for each of at most ten classes; without labels the first ones."""
    from cat_serve.images import grid
    from training.preview import save_picture

    if made.labels is None:
        chosen = made.images[: GRID_COLUMNS * MAX_CLASSES]
        save_picture(path, grid(chosen, min(GRID_COLUMNS, len(chosen))))
        return
    labels = np.unique(made.labels)
    rows = [np.flatnonzero(made.labels == labels[i]) for i in spread_classes(len(labels))]
    columns = min(GRID_COLUMNS, *(len(row) for row in rows)) if len(rows) > 1 else min(GRID_COLUMNS, len(rows[0]))  # fmt: skip
    chosen = np.concatenate([row[:columns] for row in rows])
    save_picture(path, grid(made.images[chosen], columns))


def save_interpolation(subject: Subject, psi: float, path: Path) -> None:
    """Write a strip for each of at most ten classes: from seed 0 to seed 1 along the great circle between them."""
    from cat_serve.images import grid
    from cat_serve.interpolation import slerp
    from cat_serve.latents import latent_from_seed
    from training.preview import save_picture

    assert subject.class_names is not None
    start, end = (latent_from_seed(seed, subject.z_shape) for seed in (0, 1))
    steps = [slerp(start, end, t) for t in np.linspace(0, 1, STRIP_COLUMNS)]
    classes = spread_classes(len(subject.class_names))
    z = np.tile(np.stack(steps).astype(np.float32), (len(classes), *[1] * start.ndim))
    images = subject.render(z, np.repeat(classes, STRIP_COLUMNS), psi)
    save_picture(path, grid(images, STRIP_COLUMNS))


def save_truncation(subject: Subject, path: Path) -> None:
    """Write a row for each of at most ten classes: seeds 0, 1 and 2, each at psi = 0, 0.25, 0.5, 0.75, 1."""
    from cat_serve.images import grid
    from cat_serve.latents import latents_from_seeds
    from training.preview import save_picture

    assert subject.class_names is not None
    classes = spread_classes(len(subject.class_names))
    z = latents_from_seeds(list(range(PER_PSI)), subject.z_shape).repeat(len(PSIS), axis=0)
    z = np.tile(z, (len(classes), *[1] * (z.ndim - 1)))
    psis = np.tile(np.asarray(PSIS, dtype=np.float32), PER_PSI * len(classes))
    images = subject.render(z, np.repeat(classes, PER_PSI * len(PSIS)), psis)
    save_picture(path, grid(images, PER_PSI * len(PSIS)))


def draw_confusion(matrix: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Draw shares [asked, recognised]; numbers and names only while they can be read."""
    few = len(names) <= 30
    side = max(6.0, 0.6 * len(names)) if few else 10.0
    with saved_figure(path, 1, 1, (side + 1, side)) as (_, axes):
        panel = axes[0, 0]
        panel.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
        panel.set_xlabel("recognised as")
        panel.set_ylabel("asked for")
        if not few:
            return
        for row, column in np.argwhere(matrix >= 0.005):
            value = matrix[row, column]
            colour = "white" if value > 0.5 else "black"
            panel.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)  # fmt: skip
        panel.set_xticks(range(len(names)), names, rotation=45, ha="right")
        panel.set_yticks(range(len(names)), names)


def draw_over_psi(settings: list[dict[str, Any]], fd_title: str, path: Path) -> None:
    """Draw the figures of several truncations over psi: shares on the left, the Frechet distance on the right."""
    with saved_figure(path, 1, 2, (11, 4.6)) as (_, axes):
        shares, distance = axes[0]
        for labels, dashes in (("balanced", "-"), ("random", "--")):
            rows = sorted((row for row in settings if row["labels"] == labels), key=lambda row: row["truncation_psi"])  # fmt: skip
            psi = [row["truncation_psi"] for row in rows]
            for index, name in enumerate(SHARES):
                if rows and name in rows[0]:
                    shares.plot(psi, [row[name] for row in rows], dashes, marker="o", color=f"C{index}", label=f"{name}, {labels}")  # fmt: skip
            if rows and "fd" in rows[0]:
                distance.plot(psi, [row["fd"] for row in rows], dashes, marker="o", color="C4", label=labels)  # fmt: skip
        for panel, title in ((shares, "share"), (distance, fd_title)):
            panel.set_xlabel("psi (1: no truncation)")
            panel.set_ylabel(title)
            panel.grid(alpha=0.3)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
