"""Measure a model: are its images right, varied, near the photographs, and its own?

    python -m training.evaluate model_repository/fashion-32/1 --vae checkpoints/fashion-32.safetensors
    python -m training.evaluate runs/birds/birds-64.safetensors --images photos --size 64 --psi 1 0.8 0.6
    python -m training.evaluate samples.npz --reference VIRTUAL_imagenet256_labeled.npz --inception inception-2015-12-05.pt

Measures an exported version folder, a checkpoint, or an npz of samples that were made elsewhere, against Fashion-MNIST,
a folder of images, or an npz. Features are those of EfficientNet-Lite0, and distances are named after it, never FID.
docs/evaluation.md says what each figure means. Writes to --out evaluation.json, a table (evaluation.md, also printed),
and pictures: samples.png, interpolation.png, truncation.png, confusion.png, neighbours.png, distances.png and, for
several --psi, psi.png. What takes long is kept in --out, so the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import InvalidInput, QualityError

if TYPE_CHECKING:
    from training.evaluation.measures import Extractor
    from training.evaluation.photographs import Reference
    from training.evaluation.run import Evaluation
    from training.evaluation.sampling import Setting, Subject

PER_CLASS = 1000


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
    from training.evaluation.measures import METRICS

    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("model", type=Path, help="a version folder, a checkpoint, or an npz of samples (`cat-serve generate --out X.npz`)")  # fmt: skip
    add("--out", type=Path, default=Path("runs/evaluation"))
    add("--vae", type=Path, help="the model's VAE or checkpoint, to measure its reconstructions")
    add("--metrics", nargs="+", choices=list(METRICS), metavar="METRIC",
        help="what is measured (default: all that is possible but kd and is): " + ", ".join(METRICS))  # fmt: skip
    add("--card", type=Path, help="write the figures as a model card, in Markdown")
    add("--require", type=requirement, nargs="+", default=[], metavar="FIGURE=LEAST",
        help="exit 1 if a figure is smaller, e.g. recognised=0.9")  # fmt: skip
    _add_samples(parser)
    _add_photographs(parser)
    return parser


def _add_samples(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("samples").add_argument
    add("--per-class", type=int, help=f"samples of each class (default: {PER_CLASS:,})")
    add("--samples", type=int, help="samples in all, in the place of --per-class")
    add("--labels", nargs="+", choices=("balanced", "random"),
        help="as many of every class, or labels at random; both are set side by side (default: balanced)")  # fmt: skip
    add("--psi", type=float, nargs="+", help="truncation; several are set side by side, the first is measured in full (default: 1)")  # fmt: skip


def _add_photographs(parser: argparse.ArgumentParser) -> None:
    from training.evaluation.photographs import MOST
    from training.fashion_mnist import DEFAULT_FOLDER

    add = parser.add_argument_group("photographs (default: Fashion-MNIST)").add_argument
    add("--data", type=Path, default=DEFAULT_FOLDER, help="Fashion-MNIST folder")
    add("--images", type=Path, help="a folder with the training photographs instead, one sub-folder per class or none")  # fmt: skip
    add("--test-images", type=Path, help="a folder like it with photographs that the model never saw")  # fmt: skip
    add("--reference", type=Path, help="an npz of images instead (arr_0, arr_1, mu, sigma), such as ADM's")  # fmt: skip
    add("--size", type=int, help="side in pixels that the images of folders are cut to")
    add("--class-names", type=Path, help="file with a name for every class folder")
    add("--photographs", type=int, default=MOST, help="images of a folder that are used, at most (default: %(default)s)")  # fmt: skip
    add("--searched", type=int, help="training photographs among which neighbours are looked for (default: as many as are compared with)")  # fmt: skip
    add("--inception", type=Path, help="TorchScript of the Inception network (inception-2015-12-05.pt): its features, and so FID")  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    typed = sys.argv[1:] if argv is None else argv
    arguments = build_parser().parse_args(typed)
    command = shlex.join(["python", "-m", "training.evaluate", *typed])
    return run_command(lambda: work(arguments, command), extra="train")


def work(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure, print the table, and hold the figures to what the arguments require.

    Raises:
        QualityError: a figure is too small; the files with the figures are written all the same.
    """
    from cat_serve.files import write_text
    from training.card import card
    from training.evaluation.table import tables

    a = arguments
    figures = prepare(a, command).run()
    print(tables(figures))
    if a.card:
        write_text(a.card, card(figures))
    for name, least in a.require:
        if (got := figure_at(figures, name)) < least:
            raise QualityError(
                f"{name} is {got:.4f}, at least {least} is required.",
                hint=f"the figures are in {a.out / 'evaluation.json'}",
            )
    return figures


def prepare(arguments: argparse.Namespace, command: str) -> Evaluation:
    """Open everything that the arguments name, before anything takes long."""
    from training.evaluation.measures import Measures, choose_metrics
    from training.evaluation.run import Evaluation, require_same_classes
    from training.evaluation.sampling import open_subject
    from training.evaluation.store import Store

    a = arguments
    subject = open_subject(a.model)
    reference = open_reference(a)
    labelled = subject.made is None or subject.made.labels is not None
    metrics = choose_metrics(a.metrics, reference, labelled, a.inception is not None)
    if {"recognition", "cas", "pairs"} & set(metrics):
        require_same_classes(subject, reference)
    if a.searched is not None and a.searched < 1:
        raise InvalidInput(f"--searched {a.searched} finds nothing.", hint="1 or more")
    measures = Measures(reference, open_extractor(a.inception), Store(a.out / "kept"), metrics)
    return Evaluation(subject, measures, settings(a, subject), a.out, a.vae, a.searched, command)


def open_reference(arguments: argparse.Namespace) -> Reference:
    """Open the photographs that the arguments name.

    Raises:
        InvalidInput: flags that do not belong together.
    """
    from training.evaluation import photographs

    a = arguments
    if a.images is not None and a.reference is not None:
        raise InvalidInput("--images and --reference name two data sets.", hint="give one of them")
    if a.images is None and (a.test_images or a.size or a.class_names):
        raise InvalidInput("--test-images, --size and --class-names belong to --images.", hint="name a folder with --images")  # fmt: skip
    if a.reference is not None:
        return photographs.npz(a.reference)
    if a.images is None:
        return photographs.fashion_mnist(a.data)
    if a.size is None or a.size < 1 or a.photographs < 2:
        raise InvalidInput("--images needs --size, and 2 --photographs or more.", hint="for example --size 64")  # fmt: skip
    return photographs.folders(a.images, a.test_images, a.size, a.class_names, a.photographs)


def open_extractor(inception: Path | None) -> Extractor:
    """Return the network in whose features images are compared."""
    if inception is not None:
        from cat_serve.quality.inception import InceptionFeatures

        return InceptionFeatures(inception)
    from cat_serve.quality.features import EfficientNetFeatures

    return EfficientNetFeatures()


def settings(arguments: argparse.Namespace, subject: Subject) -> tuple[Setting, ...]:
    """Return how samples are drawn, the setting that is measured in full first; none for samples that are there.

    Raises:
        InvalidInput: flags that do not belong together, or values out of range.
    """
    from training.evaluation.sampling import Setting

    a = arguments
    if subject.made is not None:
        if any(value is not None for value in (a.per_class, a.samples, a.labels, a.psi)):
            raise InvalidInput("These samples are made already.", hint="leave out --samples, --per-class, --labels and --psi")  # fmt: skip
        return ()
    if a.per_class is not None and a.samples is not None:
        raise InvalidInput("--per-class and --samples both say how many.", hint="give one of them")
    classes = len(subject.class_names or ())
    count = a.samples if a.samples is not None else (a.per_class if a.per_class is not None else PER_CLASS) * classes  # fmt: skip
    labels, psis = a.labels or ["balanced"], a.psi or [1.0]
    return tuple(dict.fromkeys(Setting(kind, psi, count) for kind in labels for psi in psis))


if __name__ == "__main__":
    sys.exit(main())
