"""Export a checkpoint as ONNX graphs with a manifest beside them.

    python -m export.onnx checkpoints/fashion-32.safetensors --repository model_repository

A graph holds mapping, truncation, trunk, VAE decoder and rounding, each where the model has it. There is a plain one per
precision, and for CAT a studio one (mixtures of classes, images of every stage). The export gets its name only after ONNX Runtime gave,
with every graph, the images that torch gives in float32, on fixed seeds, within the budget of its precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cat_serve.contract import Precision

if TYPE_CHECKING:
    from cat_serve.manifest import FileRecord, Golden
    from cat_serve.model.checkpoint import Checkpoint
    from export.graphs import Graph

MAX_BATCH = 64
PARITY_CLASSES = 32
GOLDEN_IMAGES = 10
# At least this far another machine may be off; more where this machine already needs half of it.
GOLDEN_LEVELS: dict[Precision, int] = {"fp32": 2, "fp16": 16}
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how much of it is compared.

    Attributes:
        precisions: of the plain graphs.
        decoder_precision: of the VAE decoder in fp16 graphs.
        studio_precision: of the studio graph; None leaves it out, "auto" is fp16 where the generator has stages.
        max_batch: the largest batch a service may send.
        parity_classes: classes that every graph is compared on, three images each.
        external_data: put the weights into a file beside each graph; beyond 2 GB they always are.
    """

    precisions: Sequence[Precision] = PRECISIONS
    decoder_precision: Precision = "fp16"
    studio_precision: Precision | Literal["auto"] | None = "auto"
    max_batch: int = MAX_BATCH
    parity_classes: int = PARITY_CLASSES
    external_data: bool = False


def export(
    checkpoint_path: Path,
    repository: Path,
    version: int = 1,
    options: ExportOptions | None = None,
) -> Path:
    """Export into `repository/<name>/<version>/`; an older export there is replaced only at the end.

    Returns:
        The version folder.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ParityError: a graph differs from torch beyond the budget of its precision; nothing is written.
    """
    from cat_serve.contract import NEUTRAL_PSI
    from cat_serve.files import replacing, sha256_of
    from cat_serve.manifest import Manifest, record
    from cat_serve.model.checkpoint import load_checkpoint
    from export.graphs import plan, studio_precision

    options = options or ExportOptions()
    checkpoint = load_checkpoint(checkpoint_path)
    config = checkpoint.generator.config
    studio = studio_precision(checkpoint, options.studio_precision)
    graphs = plan(options.precisions, options.decoder_precision, studio)
    target = repository / checkpoint.name / str(version)
    with replacing(target) as workspace:
        files, parity = write_and_prove(checkpoint, graphs, workspace, options)
        plain = [graph for graph in graphs if not graph.is_studio]
        golden, image_size = make_golden(plain, checkpoint, workspace, options.max_batch)
        Manifest(
            model=checkpoint.name,
            files=files | {golden.file: record(workspace / golden.file)},
            class_names=checkpoint.class_names,
            z_shape=config.z_shape,
            image_size=image_size,
            max_batch=options.max_batch,
            golden=golden,
            stages=config.stages if studio else 0,
            psi={"meaning": config.psi_meaning, "neutral": NEUTRAL_PSI},
            parity=parity,
            source={"checkpoint_sha256": sha256_of(checkpoint_path)} | checkpoint.training,
            made_with={
                n: metadata.version(n) for n in ("torch", "onnx", "onnxscript", "diffusers")
            },
        ).save(workspace)
    return target


def write_and_prove(
    checkpoint: Checkpoint, graphs: Sequence[Graph], folder: Path, options: ExportOptions
) -> tuple[dict[str, FileRecord], dict[str, Any]]:
    """Write every graph and let it through the gate; return the records and reports by file name."""
    from tqdm import tqdm

    from cat_serve.manifest import record
    from export.gate import Gate, determinism
    from export.graphs import write_graph
    from export.probes import rows

    gate = Gate(checkpoint, options.max_batch, options.parity_classes)
    files: dict[str, FileRecord] = {}
    parity: dict[str, Any] = {}
    total = sum(gate.images(graph.is_studio) for graph in graphs)
    with tqdm(total=total, unit="img") as progress:
        for graph in graphs:
            path = folder / graph.name
            progress.set_description(f"trace {graph.name}")
            example = rows(gate.inputs(graph.is_studio), slice(2))
            write_graph(graph.build(checkpoint), example, path, options.external_data)
            progress.set_description(f"prove {graph.name}")
            parity[graph.name] = gate.prove(graph, path, progress.update)
            for file in graph.files(folder):
                files[file.name] = record(
                    file,
                    precision=graph.precision,
                    decoder_precision=graph.decoder_precision,
                    determinism=determinism(parity[graph.name]),
                )
    return files, parity


def make_golden(
    graphs: Sequence[Graph], checkpoint: Checkpoint, folder: Path, max_batch: int
) -> tuple[Golden, tuple[int, int]]:
    """Write the golden images, one batch made by the first graph, and describe them.

    Returns:
        The description, with the tolerance of each graph's precision, and the images' height and width.
    """
    import numpy as np

    from cat_serve.images import encode_png, grid
    from cat_serve.manifest import GOLDEN_NAME, Golden
    from export.graphs import onnx_engine
    from export.parity import compare
    from export.probes import in_batches

    classes = len(checkpoint.class_names)
    count = min(classes, GOLDEN_IMAGES, max_batch)
    chosen = np.linspace(0, classes - 1, count).astype(int).tolist()
    seeds, psi = tuple(range(len(chosen))), (1.0,) * len(chosen)
    golden = Golden(GOLDEN_NAME, tuple(chosen), seeds, psi, max_levels={})
    batch = golden.batch(checkpoint.generator.config.z_shape)
    outputs = {g.precision: in_batches(onnx_engine(folder / g.name), batch, 2) for g in graphs}
    images = outputs[graphs[0].precision]
    for precision, output in outputs.items():
        worst = compare(images, output).max_levels
        golden.max_levels[precision] = max(GOLDEN_LEVELS[precision], 2 * worst)
    (folder / GOLDEN_NAME).write_bytes(encode_png(grid(images.images, columns=1)))
    return golden, (images.images.shape[1], images.images.shape[2])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.onnx", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint written by training.train")
    add("--repository", type=Path, default=Path("model_repository"))
    add("--version", type=int, default=1, help="number of the version folder")
    add("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS,
        help="of the plain graphs: model.onnx is fp32, model.fp16.onnx fp16 (default: both)")  # fmt: skip
    add("--decoder-precision", choices=PRECISIONS, default="fp16",
        help="of the VAE decoder in fp16 graphs (default: %(default)s)")  # fmt: skip
    add("--decoder", type=Path, metavar="FOLDER",
        help="decode with this AutoencoderKL or AutoencoderTiny (TAESD) instead; needs --name")  # fmt: skip
    add(
        "--name",
        help="of the model with the other decoder; its checkpoint is written beside CHECKPOINT",
    )
    add("--studio-precision", choices=(*PRECISIONS, "auto", "none"), default="auto",
        help="of studio.onnx; none leaves it out; auto: fp16, and none where the generator has no stages (default: %(default)s)")  # fmt: skip
    add("--external-data", action="store_true",
        help="put the weights beside each graph, as is done beyond 2 GB anyway")  # fmt: skip
    add("--max-batch", type=int, default=MAX_BATCH, help="(default: %(default)s)")
    add("--parity-classes", type=int, default=PARITY_CLASSES, metavar="N",
        help="compare every graph on 3N images; fewer for a decoder that takes seconds an image "
        "(default: %(default)s)")  # fmt: skip
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="export")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export as the arguments say; return what to report."""
    from cat_serve.errors import InvalidInput
    from cat_serve.manifest import load_artefact
    from export.decoder import with_decoder

    for name in ("max_batch", "parity_classes"):
        if (value := getattr(arguments, name)) < 1:
            raise InvalidInput(f"--{name.replace('_', '-')} is {value}; it must be at least 1.")
    studio = arguments.studio_precision
    options = ExportOptions(
        precisions=arguments.precision,
        decoder_precision=arguments.decoder_precision,
        studio_precision=None if studio == "none" else studio,
        max_batch=arguments.max_batch,
        parity_classes=arguments.parity_classes,
        external_data=arguments.external_data,
    )
    if (arguments.decoder is None) != (arguments.name is None):
        raise InvalidInput(
            "--decoder and --name belong together: another decoder is another model."
        )
    checkpoint = arguments.checkpoint
    if arguments.decoder is not None:
        checkpoint = with_decoder(checkpoint, arguments.decoder, arguments.name)
    target = export(checkpoint, arguments.repository, arguments.version, options)
    artefact = load_artefact(target)
    graphs = {name: r for name, r in artefact.manifest.files.items() if r.precision}
    return {
        "folder": str(target),
        "version": artefact.version,
        "size_bytes": {name: graph.size_bytes for name, graph in graphs.items()},
        "determinism": {name: graph.determinism for name, graph in graphs.items()},
        "parity": artefact.manifest.parity,
    }


if __name__ == "__main__":
    sys.exit(main())
