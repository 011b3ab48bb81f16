"""Export a checkpoint as one ONNX graph with a manifest beside it.

    python -m export.onnx checkpoints/fashion-32.safetensors --repository model_repository

The graph holds mapping, truncation, trunk, VAE decoder and rounding. It gets its name only after ONNX Runtime
gave the images that torch gives, on fixed seeds, within the budget.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cat_serve.manifest import Determinism, Golden
    from cat_serve.model.checkpoint import Checkpoint
    from cat_serve.model.fused import FusedModel
    from export.parity import Engine

OPSET = 20
MAX_BATCH = 64
INVARIANCE_SIZES = (2, 3, 7, 16, MAX_BATCH)
GOLDEN_IMAGES = 10
GOLDEN_MAX_LEVELS = 2
CARD_NAME = "card.md"


def write_graph(model: FusedModel, path: Path) -> None:
    """Trace the fused model with a dynamic batch and write it as ONNX."""
    import logging
    import warnings

    import torch

    from cat_serve.contract import INPUT_NAMES, OUTPUT_NAMES

    config = model.generator.config
    example = (
        torch.randn(2, config.z_dim),
        torch.zeros(2, dtype=torch.int64),
        torch.ones(2),
    )
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it misses torchvision, which we do not use
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(INPUT_NAMES),
            output_names=list(OUTPUT_NAMES),
            dynamic_shapes=({0: batch}, {0: batch}, {0: batch}),
            verbose=False,
        )
    assert program is not None
    program.save(str(path))


def onnx_engine(path: Path) -> Engine:
    """Run a graph in ONNX Runtime on the CPU."""
    import onnxruntime

    from cat_serve.contract import OUTPUT_NAMES, Batch, Output

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batch: Batch) -> Output:
        images, ok = session.run(list(OUTPUT_NAMES), batch.feeds())
        return Output(images, ok)

    return run


def prove(model: FusedModel, graph: Path) -> dict[str, Any]:
    """Compare graph and module on fixed seeds; return the report.

    Raises:
        ParityError: beyond the budget of fp32.
    """
    import numpy as np
    from tqdm import tqdm

    from export.parity import batch_invariant, compare, in_batches, probe_batch, require

    config = model.generator.config
    batch = probe_batch(config.num_classes, (config.z_dim,))
    engine = onnx_engine(graph)
    with tqdm(total=3, desc="parity", unit="step") as progress:
        reference = in_batches(model.run, batch, MAX_BATCH)
        progress.update()
        difference = compare(reference, in_batches(engine, batch, MAX_BATCH))
        progress.update()
        require(difference, "fp32", "The ONNX graph")
        invariance = batch_invariant(engine, batch, INVARIANCE_SIZES)
        progress.update()
    versions = {name: metadata.version(name) for name in ("torch", "onnxruntime")}
    return {
        "reference": f"torch {versions['torch']}, float32",
        "candidate": f"onnxruntime {versions['onnxruntime']}, CPUExecutionProvider",
        "difference": difference.to_dict(),
        "batch_invariance_max_levels": {str(size): worst for size, worst in invariance.items()},
        "classes": len(np.unique(batch.class_id)),
        "truncation_psi": sorted(set(batch.truncation_psi.tolist())),
    }


def make_golden(graph: Path, checkpoint: Checkpoint, folder: Path) -> Golden:
    """Write the golden images, made by ONNX Runtime, and describe them."""
    import numpy as np

    from cat_serve.images import encode_png, grid
    from cat_serve.manifest import GOLDEN_NAME, Golden

    classes = len(checkpoint.class_names)
    chosen = np.linspace(0, classes - 1, min(classes, GOLDEN_IMAGES)).astype(int).tolist()
    golden = Golden(
        file=GOLDEN_NAME,
        class_id=tuple(chosen),
        seed=tuple(range(len(chosen))),
        truncation_psi=(1.0,) * len(chosen),
        max_levels=GOLDEN_MAX_LEVELS,
    )
    output = onnx_engine(graph)(golden.batch((checkpoint.generator.config.z_dim,)))
    (folder / GOLDEN_NAME).write_bytes(encode_png(grid(output.images, columns=1)))
    return golden


def export(checkpoint_path: Path, repository: Path, version: int = 1) -> Path:
    """Export into `repository/<name>/<version>/`; an older export there is replaced only at the end.

    Returns:
        The version folder.
    """
    import numpy as np

    from cat_serve.files import sha256_of
    from cat_serve.manifest import MODEL_NAME, Manifest, record
    from cat_serve.model.checkpoint import load_checkpoint
    from cat_serve.model.fused import FusedModel
    from export.parity import probe_batch, rows

    checkpoint = load_checkpoint(checkpoint_path)
    model = FusedModel.from_checkpoint(checkpoint)
    config = checkpoint.generator.config
    target = repository / checkpoint.name / str(version)
    workspace = target.with_name(f".{version}.{os.getpid()}.tmp")
    workspace.mkdir(parents=True)
    try:
        graph = workspace / MODEL_NAME
        write_graph(model, graph)
        report = prove(model, graph)
        golden = make_golden(graph, checkpoint, workspace)
        sample = onnx_engine(graph)(
            rows(probe_batch(config.num_classes, (config.z_dim,)), np.s_[:1])
        )
        Manifest(
            model=checkpoint.name,
            files={
                MODEL_NAME: record(graph, "fp32"),
                golden.file: record(workspace / golden.file),
            },
            class_names=checkpoint.class_names,
            z_shape=(config.z_dim,),
            image_size=(sample.images.shape[1], sample.images.shape[2]),
            max_batch=MAX_BATCH,
            golden=golden,
            determinism=determinism(report),
            parity=report,
            source={"checkpoint_sha256": sha256_of(checkpoint_path)} | checkpoint.training,
            made_with={
                n: metadata.version(n) for n in ("torch", "onnx", "onnxscript", "diffusers")
            },
        ).save(workspace)
        if (target / CARD_NAME).exists():
            shutil.copy2(target / CARD_NAME, workspace)
        replace_folder(workspace, target)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    return target


def determinism(report: dict[str, Any]) -> Determinism:
    """Return `bytes` if no row changed with the size of its batch."""
    return "bytes" if not any(report["batch_invariance_max_levels"].values()) else "latent"


def replace_folder(source: Path, target: Path) -> None:
    """Put `source` in the place of `target`; the old folder is removed after the new one stands."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m export.onnx", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("checkpoint", type=Path, help="a checkpoint written by training.train")
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--version", type=int, default=1, help="number of the version folder")
    return parser


def main(argv: list[str] | None = None) -> int:
    from cat_serve.commands import run_command

    arguments = build_parser().parse_args(argv)
    return run_command(lambda: work(arguments), extra="export")


def work(arguments: argparse.Namespace) -> dict[str, Any]:
    """Export as the arguments say; return what to report."""
    from cat_serve.manifest import load_artefact

    target = export(arguments.checkpoint, arguments.repository, arguments.version)
    artefact = load_artefact(target)
    return {
        "folder": str(target),
        "version": artefact.version,
        "determinism": artefact.manifest.determinism,
        "parity": artefact.manifest.parity,
    }


if __name__ == "__main__":
    sys.exit(main())
