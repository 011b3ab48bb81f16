"""A TensorRT engine as a form: the file that `export.trt` built, and the record beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cat_serve.contract import IMAGES, Precision
from cat_serve.errors import InvalidInput
from export.forms.base import Form, Identity
from export.trt.record import read_record, record_path


def is_engine(name: str) -> bool:
    """Say whether there is a file with the record of an engine beside it."""
    return Path(name).is_file() and record_path(Path(name)).is_file()


def open_engine(name: str, precision: Precision) -> Form:
    """Open an engine on the first GPU; its record says the precision.

    Raises:
        ArtefactError: the engine was changed, or was built for something else.
        MissingDependency: TensorRT or a GPU is not here.
        InvalidInput: it has no weights, takes no row alone, or nothing is known of its model.
    """
    from export.trt import runner as trt_runner

    record = read_record(Path(name))
    identity = identity_of(name, record)
    options = record["key"]["options"]
    profile = options["profile"]
    if profile["min_batch"] > 1:
        raise InvalidInput(
            f"{name} takes {profile['min_batch']} rows or more, and rows are compared one by one too.",
            hint="build it with --min-batch 1",
        )
    engine = trt_runner.open_engine(Path(name))
    return Form(
        name=name,
        engine=f"{options['builder']} {record['key']['version']}",
        identity=identity,
        precision=record["key"]["graph"]["precision"],
        determinism="latent",  # TensorRT promises no bytes: rows may change with their batch
        max_batch=engine.max_batch,
        run=lambda rows: engine(rows.batch(identity.z_shape)),
        opt_batch=engine.opt_batch,
    )


def identity_of(name: str, record: dict[str, Any]) -> Identity:
    """Return which model an engine is of, as its record says.

    Raises:
        InvalidInput: no manifest described its graph when it was built.
    """
    source = record["source"]
    if source["model"] is None:
        raise InvalidInput(
            f"Nothing is known of the model of {name}: no manifest described {source['graph']}.",
            hint="build it from a graph in an exported version folder",
        )
    height, width = record["outputs"][IMAGES]["shape"][1:3]
    return Identity(
        checkpoint_sha256=source["checkpoint_sha256"],
        num_classes=source["num_classes"],
        class_names=None,
        z_shape=tuple(source["z_shape"]),
        image_size=(height, width),
    )
