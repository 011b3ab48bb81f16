"""The manifest beside every artefact: what the model is, what its files hash to, how well they agree.

A model's public version is the first twelve hex digits of the SHA-256 of its manifest file; since the
manifest hashes every file that is executed, the version names the bytes that make the images.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cat_serve.contract import NEUTRAL_PSI, Batch, Precision
from cat_serve.errors import ArtefactError, InvalidInput
from cat_serve.files import sha256_of, write_text
from cat_serve.latents import latents_from_seeds

FORMAT = "cat-serve-manifest-2"
MANIFEST_NAME = "manifest.json"
GRAPH_NAMES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx"}
STUDIO_NAME = "studio.onnx"
GOLDEN_NAME = "golden.png"
EXPORT = "python -m export.onnx"

Determinism = Literal["bytes", "latent"]


@dataclass(frozen=True)
class FileRecord:
    """One file that is executed or compared: its hash and what it is.

    Attributes:
        precision: of a graph: float16 or float32 in trunk and heads.
        decoder_precision: of a graph: the same of its VAE decoder.
        determinism: of a graph: `bytes` if a row's bytes were seen not to depend on its batch, else `latent`.
    """

    sha256: str
    size_bytes: int
    precision: Precision | None = None
    decoder_precision: Precision | None = None
    determinism: Determinism | None = None


@dataclass(frozen=True)
class Golden:
    """Images that an engine must make again before it may serve.

    The file is a PNG of the images below each other, one per (class_id, seed) pair.

    Attributes:
        max_levels: for each precision, how far one uint8 value may be off on another machine.
    """

    file: str
    class_id: tuple[int, ...]
    seed: tuple[int, ...]
    truncation_psi: tuple[float, ...]
    max_levels: dict[Precision, int]

    def batch(self, z_shape: tuple[int, ...]) -> Batch:
        """Return the inputs of the golden images."""
        return Batch(
            latents_from_seeds(self.seed, z_shape),
            np.array(self.class_id, dtype=np.int64),
            np.array(self.truncation_psi, dtype=np.float32),
        )


@dataclass(frozen=True)
class Manifest:
    """Everything a service must know of one model.

    Attributes:
        z_shape: shape of one latent, without the batch.
        image_size: (height, width) in px.
        psi: what truncation_psi means: {"meaning": "w_lerp" or "none", "neutral": float}.
        stages: images per row that the studio graph returns; 0 if there is none.
        parity: for each graph, the report of the comparison that let it through.
        source: the checkpoint's sha256, how it was trained, and licences.
    """

    model: str
    files: dict[str, FileRecord]
    class_names: tuple[str, ...]
    z_shape: tuple[int, ...]
    image_size: tuple[int, int]
    max_batch: int
    golden: Golden
    stages: int = 0
    psi: dict[str, Any] = field(
        default_factory=lambda: {"meaning": "w_lerp", "neutral": NEUTRAL_PSI}
    )
    parity: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    made_with: dict[str, str] = field(default_factory=dict)
    format: str = FORMAT

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Return the precisions of the plain graphs there are."""
        return tuple(precision for precision, name in GRAPH_NAMES.items() if name in self.files)

    @property
    def why_no_studio(self) -> str:
        """Why mixtures and stages cannot be had, where `stages` is 0."""
        if self.psi["meaning"] == "none":
            return "its generator has no stages, and takes one class"
        return "the model was exported without its studio"

    def require_psi(self, truncation_psi: float) -> None:
        """Refuse a truncation that would change nothing, rather than ignore it.

        Raises:
            InvalidInput: `bad_truncation_psi`, it means nothing for this model.
        """
        neutral = self.psi["neutral"]
        if self.psi["meaning"] == "none" and truncation_psi != neutral:
            raise InvalidInput(
                f"truncation_psi is {truncation_psi}, and it means nothing for {self.model}.",
                code="bad_truncation_psi",
                hint="leave it out: this model has no truncation",
                parameter="truncation_psi",
                got=truncation_psi,
                accepted=f"{neutral:g}",
            )

    def save(self, folder: Path) -> None:
        write_text(folder / MANIFEST_NAME, json.dumps(asdict(self), indent=1) + "\n")


@dataclass(frozen=True)
class Artefact:
    """A version folder whose manifest was read and whose files were checked against it."""

    folder: Path
    manifest: Manifest
    version: str

    def graph(self, precision: Precision) -> tuple[Path, FileRecord]:
        """Return the plain graph of a precision, and what the manifest says of it.

        Raises:
            ArtefactError: this artefact was exported without it; another one is never taken instead.
        """
        name = GRAPH_NAMES[precision]
        if name not in self.manifest.files:
            there = ", ".join(self.manifest.precisions) or "no graph"
            raise ArtefactError(
                f"The model {self.manifest.model!r} has no {name}: it was exported with {there}.",
                hint=f"{EXPORT} checkpoints/{self.manifest.model}.safetensors --precision fp32 fp16",
            )
        return self.folder / name, self.manifest.files[name]


def record(path: Path, **facts: Any) -> FileRecord:
    """Return what the manifest says of one file; `facts` are the fields beyond hash and size."""
    return FileRecord(sha256_of(path), path.stat().st_size, **facts)


def load_artefact(folder: Path) -> Artefact:
    """Read a version folder; every file the manifest names must be there with its hash.

    Raises:
        ArtefactError: no manifest, another format, or a file that is missing or was changed.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ArtefactError(
            f"Version {folder.name} of model {folder.parent.name!r} has no {MANIFEST_NAME}.",
            hint="make it with: python -m export.onnx --help",
        )
    manifest = read_manifest(path)
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            raise ArtefactError(
                f"Model {manifest.model!r} lacks {name}.",
                hint="export it again: python -m export.onnx --help",
            )
        if (got := sha256_of(folder / name)) != expected.sha256:
            raise ArtefactError(
                f"{name} of model {manifest.model!r} is not the file its manifest describes "
                f"(sha256 {got[:12]}, expected {expected.sha256[:12]}).",
                hint="restore the file, or export it again: python -m export.onnx --help",
            )
    return Artefact(folder, manifest, public_version(path))


def public_version(path: Path) -> str:
    """Return the public version of the model whose manifest is at `path`."""
    return sha256_of(path)[:12]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest without looking at the files that it names.

    Raises:
        ArtefactError: it has another format, or is damaged.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values.get("format") != FORMAT:
            raise ArtefactError(
                f"The manifest of {path.parent.parent.name!r} has format {values.get('format')!r}, "
                f"not {FORMAT!r}.",
                hint=f"export it again with this version of the package: "
                f"{EXPORT} checkpoints/{path.parent.parent.name}.safetensors --repository FOLDER",
            )
        return manifest_of(values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtefactError(
            f"The manifest of {path.parent.parent.name!r} is damaged: {error}",
            hint="restore it, or export the model again",
        ) from error


def manifest_of(values: Mapping[str, Any]) -> Manifest:
    """Return the manifest that these JSON values are.

    Raises:
        ValueError, KeyError, TypeError: they are none.
    """
    if unknown := values.keys() - {f.name for f in fields(Manifest)}:
        raise ValueError(f"unknown keys {sorted(unknown)}")
    golden: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in values["golden"].items()
    }
    height, width = values["image_size"]
    parts = {
        "files": {name: FileRecord(**entry) for name, entry in values["files"].items()},
        "golden": Golden(**golden),
        "class_names": tuple(values["class_names"]),
        "z_shape": tuple(values["z_shape"]),
        "image_size": (height, width),
    }
    return Manifest(**{**values, **parts})
