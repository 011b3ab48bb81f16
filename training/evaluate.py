"""Measure a model on Fashion-MNIST: are its images recognised as the class that was asked for?

    python -m training.evaluate model_repository/fashion-32/1

Makes the same number of images of every class (seeds 0, 1, 2, ... of each, psi = 1) and shows them to a
classifier that saw only the real training photographs. Writes figures as JSON and a confusion matrix and a
sample grid as PNG. A checkpoint (.safetensors) can be measured in the place of an exported model.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from cat_serve.contract import Batch, Output
from cat_serve.errors import BadOutput, QualityError

Engine = Callable[[Batch], Output]

BATCH_SIZE = 50
GRID_COLUMNS = 16


def open_engine(path: Path) -> tuple[Engine, tuple[str, ...], tuple[int, ...], str]:
    """Open an exported version folder in ONNX Runtime, or a checkpoint in torch.

    Returns:
        The engine, the class names, the latent's shape, and what is measured.
    """
    if path.suffix == ".safetensors":
        from cat_serve.files import sha256_of
        from cat_serve.model.checkpoint import load_checkpoint
        from cat_serve.model.fused import FusedModel

        checkpoint = load_checkpoint(path)
        run = FusedModel.from_checkpoint(checkpoint).run
        z_shape = (checkpoint.generator.config.z_dim,)
        return run, checkpoint.class_names, z_shape, f"checkpoint {sha256_of(path)[:12]}"
    from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
    from cat_serve.manifest import load_artefact

    artefact = load_artefact(path)
    backend = OnnxRuntimeBackend(artefact)
    manifest = artefact.manifest
    what = f"{manifest.model}@{artefact.version}, {backend.name}"
    return backend.run, manifest.class_names, manifest.z_shape, what


def generate(
    engine: Engine, num_classes: int, z_shape: tuple[int, ...], per_class: int, psi: float
) -> tuple[np.ndarray, np.ndarray]:
    """Make `per_class` images of each class: uint8 [N, H, W, 3] and int64 [N], class by class.

    Raises:
        BadOutput: the engine said of some image that it must not be shown.
    """
    from tqdm import tqdm

    from cat_serve.latents import latents_from_seeds

    parts = []
    with tqdm(total=num_classes * per_class, unit="img", desc="generate") as progress:
        for class_id in range(num_classes):
            for start in range(0, per_class, BATCH_SIZE):
                seeds = range(start, min(start + BATCH_SIZE, per_class))
                count = len(seeds)
                output = engine(Batch(
                    latents_from_seeds(seeds, z_shape),
                    np.full(count, class_id, dtype=np.int64),
                    np.full(count, psi, dtype=np.float32),
                ))  # fmt: skip
                if not output.ok.all():
                    bad = [seed for seed, ok in zip(seeds, output.ok, strict=True) if not ok]
                    raise BadOutput(f"Class {class_id}, seeds {bad}: the engine says not ok.")
                parts.append(output.images)
                progress.update(count)
    return np.concatenate(parts), np.repeat(np.arange(num_classes), per_class)


def judge(data: Path, cache: Path) -> tuple[Any, float]:
    """Return the classifier trained on the real training photographs, and its accuracy on the test ones."""
    from cat_serve.quality.classifier import (
        accuracy,
        load_classifier,
        save_classifier,
        train_classifier,
    )
    from training.fashion_mnist import CLASS_NAMES, load_split, to_rgb32

    if cache.exists():
        model = load_classifier(cache, len(CLASS_NAMES))
    else:
        images, labels = load_split("train", data)
        model = train_classifier(to_rgb32(images), labels, len(CLASS_NAMES))
        save_classifier(cache, model)
    images, labels = load_split("test", data)
    return model, accuracy(model, to_rgb32(images), labels)


def draw_confusion(matrix: np.ndarray, names: tuple[str, ...], path: Path) -> None:
    """Plot shares [asked, recognised] as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 6))
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(matrix >= 0.005):
        value = matrix[row, column]
        colour = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("recognised as")
    axes.set_ylabel("asked for")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def evaluate(path: Path, data: Path, out: Path, per_class: int, psi: float) -> dict[str, Any]:
    """Measure, write the files, and return the figures."""
    from cat_serve.files import write_text
    from cat_serve.images import grid
    from cat_serve.quality.classifier import predict
    from training.preview import save_picture

    started = time.monotonic()
    engine, names, z_shape, what = open_engine(path)
    out.mkdir(parents=True, exist_ok=True)
    model, real_accuracy = judge(data, out / "classifier.pt")
    images, labels = generate(engine, len(names), z_shape, per_class, psi)
    predicted = predict(model, images)
    matrix = np.zeros((len(names), len(names)))
    np.add.at(matrix, (labels, predicted), 1 / per_class)
    figures = {
        "model": what,
        "images": len(images),
        "truncation_psi": psi,
        "recognised": float((predicted == labels).mean()),
        "recognised_by_class": dict(zip(names, matrix.diagonal().round(4).tolist(), strict=True)),
        "classifier_on_real_test": real_accuracy,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_text(out / "evaluation.json", json.dumps(figures, indent=1) + "\n")
    draw_confusion(matrix, names, out / "confusion.png")
    by_class = images.reshape(len(names), per_class, *images.shape[1:])[:, :GRID_COLUMNS]
    columns = by_class.shape[1]
    save_picture(out / "samples.png", grid(by_class.reshape(-1, *images.shape[1:]), columns))
    return figures


def build_parser() -> argparse.ArgumentParser:
    from training.fashion_mnist import DEFAULT_FOLDER

    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a version folder, or a checkpoint")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="Fashion-MNIST folder")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--psi", type=float, default=1.0)
    parser.add_argument("--require", type=float, default=0.0,
                        help="exit 1 if a smaller share than this is recognised")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and hold the result to what the arguments require.

    Raises:
        QualityError: a smaller share was recognised; the files with the figures are written all the same.
    """
    a = arguments
    figures = evaluate(a.model, a.data, a.out, a.per_class, a.psi)
    if figures["recognised"] < a.require:
        raise QualityError(
            f"{figures['recognised']:.2%} of the images were recognised, {a.require:.2%} are required.",
            hint=f"the figures are in {a.out / 'evaluation.json'}",
        )
    return figures


if __name__ == "__main__":
    sys.exit(main())
