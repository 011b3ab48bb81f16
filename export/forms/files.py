"""Forms that are files: a checkpoint in torch, and the graphs of an export in ONNX Runtime, both on the CPU."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from cat_serve.contract import Precision
from cat_serve.manifest import GRAPH_NAMES
from export.forms.base import Form, Identity


def open_checkpoint(name: str, precision: Precision) -> Form:
    """Open a checkpoint in torch, in float32 whatever precision was asked for.

    Raises:
        CheckpointError: no such file, or a damaged one.
    """
    import torch

    from cat_serve.files import sha256_of
    from cat_serve.model.checkpoint import load_checkpoint
    from cat_serve.model.fused import FusedModel

    checkpoint = load_checkpoint(Path(name))
    model = FusedModel.from_checkpoint(checkpoint)
    identity = Identity(
        checkpoint_sha256=sha256_of(Path(name)),
        num_classes=len(checkpoint.class_names),
        class_names=checkpoint.class_names,
        z_shape=checkpoint.generator.config.z_shape,
        image_size=checkpoint.image_size,
    )
    return Form(
        name=name,
        engine=f"torch {torch.__version__}, CPU",
        identity=identity,
        precision="fp32",
        determinism="latent",  # nobody measures it at export
        max_batch=None,
        run=lambda rows: model.run(rows.batch(identity.z_shape)),
    )


def open_graph(name: str, precision: Precision) -> Form:
    """Open one graph of an export by its file; the file says the precision."""
    path = Path(name)
    own = next(p for p, file in GRAPH_NAMES.items() if file == path.name)
    return _open_export(name, path.parent, own)


def open_folder(name: str, precision: Precision) -> Form:
    """Open the graph of `precision` of an exported version folder."""
    return _open_export(name, Path(name), precision)


def _open_export(name: str, folder: Path, precision: Precision) -> Form:
    """Open a graph in ONNX Runtime on the CPU, as a server would.

    Raises:
        ArtefactError: the folder is damaged, or has no graph of that precision.
        MissingDependency: ONNX Runtime is not installed.
    """
    from cat_serve.backends import open_backend
    from cat_serve.backends.base import EngineOptions
    from cat_serve.manifest import load_artefact

    artefact = load_artefact(folder)
    manifest = artefact.manifest
    backend = open_backend("onnxruntime", artefact, EngineOptions(precision=precision))
    identity = Identity.of(manifest)
    return Form(
        name=name,
        engine=f"onnxruntime {metadata.version('onnxruntime')}, CPU",
        identity=identity,
        precision=precision,
        determinism=backend.determinism,
        max_batch=manifest.max_batch,
        run=lambda rows: backend.run(rows.batch(identity.z_shape)),
    )
