"""Measure a model on Fashion-MNIST: are its images right, varied, and near the photographs?

    python -m training.evaluate model_repository/fashion-32/1 --vae checkpoints/fashion-32.safetensors

Makes the same number of images of every class (seeds 0, 1, 2, ... of each, psi = 1) and measures

* recognised: the share that a classifier trained only on the real training photographs takes for the class
  that was asked for;
* trained_on_generated: how right the same classifier is on real test photographs when it is trained only on
  these images (the classification accuracy score of Ravuri and Vinyals, arXiv 1905.10887);
* pair_distance: the mean distance of two images of one class in EfficientNet-Lite0's features, beside that of
  real photographs;
* fd_effnet_lite0: the Frechet distance to the test photographs in the same features, beside that of the VAE's
  reconstructions of them and that of as many training photographs. It is not an FID.

Writes the figures as JSON, a confusion matrix and a sample grid as PNG, and with --card a model card. A
checkpoint (.safetensors) can be measured in the place of an exported model. The classifier is kept in --out.
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
from cat_serve.errors import BadOutput, InvalidInput, QualityError

Engine = Callable[[Batch], Output]
Labelled = tuple[np.ndarray, np.ndarray]

BATCH_SIZE = 50
GRID_COLUMNS = 16
GENERATED_EPOCHS = 12  # twice those of the judge: there are six times fewer images


def open_engine(path: Path) -> tuple[Engine, tuple[str, ...], tuple[int, ...], dict[str, Any]]:
    """Open an exported version folder in ONNX Runtime, or a checkpoint in torch.

    Returns:
        The engine, the class names, the latent's shape, and what is measured: its name, version and training.
    """
    if path.suffix == ".safetensors":
        from cat_serve.files import sha256_of
        from cat_serve.model.checkpoint import load_checkpoint
        from cat_serve.model.fused import FusedModel

        checkpoint = load_checkpoint(path)
        run = FusedModel.from_checkpoint(checkpoint).run
        z_shape = (checkpoint.generator.config.z_dim,)
        version = f"checkpoint {sha256_of(path)[:12]}"
        what = {"model": checkpoint.name, "version": version, "engine": "torch"}
        return run, checkpoint.class_names, z_shape, what | _effort(checkpoint.training)
    from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
    from cat_serve.manifest import load_artefact

    artefact = load_artefact(path)
    backend = OnnxRuntimeBackend(artefact)
    manifest = artefact.manifest
    what = {"model": manifest.model, "version": artefact.version, "engine": backend.name}
    return backend.run, manifest.class_names, manifest.z_shape, what | _effort(manifest.source)


def _effort(training: dict[str, Any]) -> dict[str, Any]:
    """Return what the training cost."""
    hours = training.get("seconds", 0) / 3600
    seed = training.get("config", {}).get("seed")
    return {"training_nimg": training.get("nimg"), "training_hours": round(hours, 2), "seed": seed}


def generate(
    engine: Engine, num_classes: int, z_shape: tuple[int, ...], per_class: int, psi: float
) -> Labelled:
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


def judge(train: Labelled, num_classes: int, cache: Path) -> Any:
    """Return the classifier trained on the real training photographs; `cache` keeps it."""
    from cat_serve.quality.classifier import load_classifier, save_classifier, train_classifier

    if cache.exists():
        return load_classifier(cache, num_classes)
    model = train_classifier(*train, num_classes)
    save_classifier(cache, model)
    return model


def recognition(
    images: Labelled, train: Labelled, test: Labelled, reconstructed: np.ndarray | None, cache: Path
) -> tuple[dict[str, Any], np.ndarray]:
    """Show the images to the judge, and photographs to a judge that saw only the images.

    Returns:
        Figures, and the shares [asked, recognised].
    """
    from cat_serve.quality.classifier import accuracy, predict, train_classifier

    classes = int(train[1].max()) + 1
    model = judge(train, classes, cache)
    predicted = predict(model, images[0])
    matrix = np.zeros((classes, classes))
    np.add.at(matrix, (images[1], predicted), classes / len(images[1]))
    pupil = train_classifier(*images, classes, GENERATED_EPOCHS)
    figures: dict[str, Any] = {
        "recognised": float((predicted == images[1]).mean()),
        "recognised_by_class": matrix.diagonal().round(4).tolist(),
        "classifier_on_real_test": accuracy(model, *test),
        "trained_on_generated": accuracy(pupil, *test),
    }
    if reconstructed is not None:
        figures["classifier_on_reconstructions"] = accuracy(model, reconstructed, test[1])
    return figures, matrix


def distances(
    images: Labelled, train: Labelled, test: Labelled, reconstructed: np.ndarray | None
) -> dict[str, Any]:
    """Measure in EfficientNet-Lite0's features: variety within a class, and distance from the photographs."""
    from cat_serve.quality.distances import frechet_distance, pair_distance
    from cat_serve.quality.features import extract

    count = len(test[0])
    real = extract(test[0], "test features")
    generated = extract(images[0], "features")
    frechet = {
        "generated": frechet_distance(generated, real),
        "real": frechet_distance(extract(train[0][:count], "train features"), real),
    }
    if reconstructed is not None:
        frechet["reconstructions"] = frechet_distance(
            extract(reconstructed, "reconstruction features"), real
        )
    pairs = {"generated": pair_distance(generated, images[1]), "real": pair_distance(real, test[1])}
    pairs["ratio"] = pairs["generated"] / pairs["real"]
    return {"pair_distance": pairs, "fd_effnet_lite0": frechet}


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


def evaluate(
    path: Path, data: Path, out: Path, per_class: int, psi: float, vae: Path | None = None
) -> dict[str, Any]:
    """Measure, write the files, and return the figures.

    Args:
        vae: the VAE to reconstruct photographs with; without it there are no figures of reconstructions.
    """
    from cat_serve.files import write_text
    from cat_serve.images import grid
    from training.fashion_mnist import load_split, to_rgb32
    from training.preview import save_picture

    started = time.monotonic()
    engine, names, z_shape, what = open_engine(path)
    out.mkdir(parents=True, exist_ok=True)
    train, test = (
        (to_rgb32(images), labels)
        for images, labels in (load_split("train", data), load_split("test", data))
    )
    made = generate(engine, len(names), z_shape, per_class, psi)
    by_class = made[0].reshape(len(names), per_class, *made[0].shape[1:])[:, :GRID_COLUMNS]
    columns = by_class.shape[1]
    save_picture(out / "samples.png", grid(by_class.reshape(-1, *made[0].shape[1:]), columns))
    reconstructed = reconstructions(vae, test[0]) if vae else None
    figures, matrix = recognition(made, train, test, reconstructed, out / "classifier.pt")
    draw_confusion(matrix, names, out / "confusion.png")
    shares = figures["recognised_by_class"]
    figures["recognised_by_class"] = dict(zip(names, shares, strict=True))
    figures |= distances(made, train, test, reconstructed)
    head = {"images": len(made[0]), "seeds": [0, per_class - 1], "truncation_psi": psi}
    figures = what | head | figures | {"seconds": round(time.monotonic() - started, 1)}
    write_text(out / "evaluation.json", json.dumps(figures, indent=1) + "\n")
    return figures


def reconstructions(vae: Path, images: np.ndarray) -> np.ndarray:
    """Return what the VAE makes of photographs, uint8 [N, H, W, 3]."""
    from cat_serve.model.checkpoint import open_vae
    from training.vae import reconstruct

    return reconstruct(open_vae(vae), images)


def figure_at(figures: dict[str, Any], name: str) -> float:
    """Return the figure called `name`, with dots between levels, such as `pair_distance.ratio`.

    Raises:
        InvalidInput: there is no such figure.
    """
    value: Any = figures
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, int | float):
        raise InvalidInput(
            f"There is no figure {name!r}.", hint="for example recognised or pair_distance.ratio"
        )
    return float(value)


def requirement(text: str) -> tuple[str, float]:
    """Parse `FIGURE=LEAST`, such as `recognised=0.9`."""
    name, _, least = text.partition("=")
    try:
        return name, float(least)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not FIGURE=LEAST") from error


def build_parser() -> argparse.ArgumentParser:
    from training.fashion_mnist import DEFAULT_FOLDER

    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="a version folder, or a checkpoint")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="Fashion-MNIST folder")
    parser.add_argument("--out", type=Path, default=Path("runs/evaluation"))
    parser.add_argument(
        "--vae", type=Path, help="the model's VAE or checkpoint, to measure its reconstructions"
    )
    parser.add_argument("--per-class", type=int, default=1000)
    parser.add_argument("--psi", type=float, default=1.0)
    parser.add_argument("--card", type=Path, help="write the figures as a model card, in Markdown")
    parser.add_argument("--require", type=requirement, nargs="+", default=[], metavar="FIGURE=LEAST",
                        help="exit 1 if a figure is smaller, e.g. recognised=0.9")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="train")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, and hold the figures to what the arguments require.

    Raises:
        QualityError: a figure is too small; the files with the figures are written all the same.
    """
    from cat_serve.files import write_text
    from training.card import card

    a = arguments
    figures = evaluate(a.model, a.data, a.out, a.per_class, a.psi, a.vae)
    if a.card:
        write_text(a.card, card(figures))
    for name, least in a.require:
        if (got := figure_at(figures, name)) < least:
            raise QualityError(
                f"{name} is {got:.4f}, at least {least} is required.",
                hint=f"the figures are in {a.out / 'evaluation.json'}",
            )
    return figures


if __name__ == "__main__":
    sys.exit(main())
