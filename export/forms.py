"""The forms of one model that can be compared, each opened by its name: a checkpoint, an export, a server.

Another engine is one more `Kind`: how its names look, and what opens one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cat_serve.contract import Precision
from cat_serve.errors import InvalidInput
from cat_serve.manifest import GRAPH_NAMES, Determinism

if TYPE_CHECKING:
    from cat_serve.contract import Output
    from cat_serve.model.checkpoint import Checkpoint
    from export.probes import Seeded

CHECKPOINT_SUFFIX = ".safetensors"
SERVER_SCHEMES = ("http://", "https://")


@dataclass(frozen=True)
class Identity:
    """Which model a form is of.

    Attributes:
        checkpoint_sha256: of the weights all forms come from; None if the form does not say.
        z_shape: of one latent, without the batch.
        image_size: (height, width) in px.
    """

    checkpoint_sha256: str | None
    class_names: tuple[str, ...]
    z_shape: tuple[int, ...]
    image_size: tuple[int, int]


@dataclass(frozen=True)
class Form:
    """A model in one form, opened.

    Attributes:
        name: what it was opened by.
        engine: what computes, with its version.
        precision: a row of `export.parity.BUDGETS`.
        determinism: `bytes` if a row must not change with its batch.
        max_batch: the most rows it takes at once; None if it sets no limit.
        run: makes the images of some rows, uint8 [B, H, W, 3], and says which are ok.
    """

    name: str
    engine: str
    identity: Identity
    precision: str
    determinism: Determinism
    max_batch: int | None
    run: Callable[[Seeded], Output]


@dataclass(frozen=True)
class Kind:
    """One kind of form.

    Attributes:
        shown: how its names look, for people.
        fits: says whether a name is one of its kind, by the name and by what lies there.
        open: opens a name; the precision is the one that was asked for, where the name leaves it open.
    """

    shown: str
    fits: Callable[[str], bool]
    open: Callable[[str, Precision], Form]


def open_form(name: str, precision: Precision = "fp32") -> Form:
    """Open whatever `name` names.

    Args:
        precision: of an export's folder, which graph; of a server, what it was started with.

    Raises:
        InvalidInput: it names nothing that can be compared.
        CatServeError: what it names is damaged, or does not answer.
    """
    for kind in KINDS:
        if kind.fits(name):
            return kind.open(name, precision)
    raise InvalidInput(
        f"{name!r} is nothing that can be compared.",
        hint=f"what can: {', '.join(kind.shown for kind in KINDS)}",
    )


def require_same_model(a: Form, b: Form) -> None:
    """Refuse two forms that are not of one checkpoint.

    Raises:
        InvalidInput: another checkpoint, other classes or other shapes; says which.
    """
    one, other = a.identity, b.identity
    differ = []
    if one.checkpoint_sha256 is None or one.checkpoint_sha256 != other.checkpoint_sha256:
        hashes = (str(form.checkpoint_sha256)[:12] for form in (one, other))
        differ.append("checkpoint sha256 {} and {}".format(*hashes))
    if one.class_names != other.class_names:
        differ.append(f"{_classes(one, other)} and {_classes(other, one)}")
    if one.z_shape != other.z_shape:
        differ.append(f"z {list(one.z_shape)} and {list(other.z_shape)}")
    if one.image_size != other.image_size:
        differ.append("images of {}x{} and {}x{} px".format(*one.image_size, *other.image_size))
    if differ:
        raise InvalidInput(
            f"{a.name} and {b.name} do not belong together: {'; '.join(differ)}.",
            hint="compare forms of one checkpoint; an export's manifest says which it came from",
        )


def _classes(own: Identity, other: Identity) -> str:
    """Say how many classes there are and, if that is not the difference, the first that is."""
    count = f"{len(own.class_names)} classes"
    if len(own.class_names) != len(other.class_names):
        return count
    pairs = zip(own.class_names, other.class_names, strict=True)
    return f"{count} with {next(name for name, theirs in pairs if name != theirs)!r}"


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
        class_names=checkpoint.class_names,
        z_shape=(checkpoint.generator.config.z_dim,),
        image_size=_image_size(checkpoint),
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


def _image_size(checkpoint: Checkpoint) -> tuple[int, int]:
    """Return (height, width) of a checkpoint's images."""
    from cat_serve.model.vae import upscale

    side_px = checkpoint.generator.config.latent_size * upscale(checkpoint.vae)
    return side_px, side_px


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
    identity = Identity(
        checkpoint_sha256=manifest.source.get("checkpoint_sha256"),
        class_names=manifest.class_names,
        z_shape=manifest.z_shape,
        image_size=manifest.image_size,
    )
    return Form(
        name=name,
        engine=f"onnxruntime {metadata.version('onnxruntime')}, CPU",
        identity=identity,
        precision=precision,
        determinism=backend.determinism,
        max_batch=manifest.max_batch,
        run=lambda rows: backend.run(rows.batch(identity.z_shape)),
    )


def open_server(name: str, precision: Precision) -> Form:
    """Open a model of a running server; see `export.remote`."""
    from export.remote import open_server as open_remote

    return open_remote(name, precision)


KINDS = (
    Kind("http://HOST:PORT[?model=NAME]", lambda n: n.startswith(SERVER_SCHEMES), open_server),
    Kind("CHECKPOINT.safetensors", lambda n: n.endswith(CHECKPOINT_SUFFIX), open_checkpoint),
    Kind(
        f"VERSION_FOLDER/({'|'.join(GRAPH_NAMES.values())})",
        lambda n: Path(n).name in GRAPH_NAMES.values(),
        open_graph,
    ),
    Kind("VERSION_FOLDER", lambda n: Path(n).is_dir(), open_folder),
)
