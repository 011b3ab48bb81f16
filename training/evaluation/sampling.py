"""What is measured: a version folder, a checkpoint, or samples that were made elsewhere; and how samples are drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from cat_serve.contract import Batch, Output
from cat_serve.errors import BadOutput, InvalidInput
from training.evaluation.photographs import Photographs, read_npz
from training.evaluation.store import Store

Engine = Callable[[Batch], Output]
Labels = Literal["balanced", "random"]

BATCH_SIZE = 50
LABELS: tuple[Labels, ...] = get_args(Labels)
LABEL_SEED = 0


@dataclass(frozen=True)
class Setting:
    """How samples are drawn: as many of every class with seeds 0, 1, 2, ... of each, or labels and seeds at random.

    With random labels image i has seed i, and its label comes from one fixed stream.
    """

    labels: Labels
    psi: float
    samples: int

    def __post_init__(self) -> None:
        if not 0 <= self.psi <= 1:
            raise InvalidInput(f"--psi {self.psi:g} is no truncation.", hint="0 (class mean) to 1 (off)")  # fmt: skip
        if self.samples < 2:
            raise InvalidInput(f"{self.samples} samples cannot be measured.", hint="2 or more")

    @property
    def name(self) -> str:
        return f"{self.labels} labels, psi = {self.psi:g}"

    def rows(self, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return class and seed of every sample, int64 [N]; balanced ones are class by class, N rounded up."""
        if self.labels == "random":
            classes = np.random.RandomState(LABEL_SEED).randint(num_classes, size=self.samples)
            return classes.astype(np.int64), np.arange(self.samples)
        per_class = -(-self.samples // num_classes)
        return (
            np.repeat(np.arange(num_classes), per_class),
            np.tile(np.arange(per_class), num_classes),
        )


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, or its samples.

    Attributes:
        what: name, version, engine, and what the training cost.
        engine: None for samples that were made elsewhere, which are `made`.
    """

    what: dict[str, Any]
    class_names: tuple[str, ...] | None = None
    z_shape: tuple[int, ...] = ()
    engine: Engine | None = None
    made: Photographs | None = None

    def draw(self, setting: Setting, store: Store) -> Photographs:
        """Return the samples of a setting, with their labels.

        Raises:
            BadOutput: the engine said of some image that it must not be shown.
        """
        if self.made is not None:
            return self.made
        assert self.engine is not None
        assert self.class_names is not None
        classes, seeds = setting.rows(len(self.class_names))
        key = {name: self.what[name] for name in ("model", "version", "engine")}
        key |= {"labels": setting.labels, "psi": setting.psi, "batch": BATCH_SIZE}
        if setting.labels == "balanced":
            key["per_class"] = len(classes) // len(self.class_names)

        def make(start: int, stop: int) -> np.ndarray:
            return self.generate(classes[start:stop], seeds[start:stop], setting.psi)

        images = store.array("generate", key, len(classes), make)
        return Photographs(images, classes)

    def generate(self, classes: np.ndarray, seeds: np.ndarray, psi: float) -> np.ndarray:
        """Make the images of these classes and seeds, uint8 [N, H, W, 3]; see `draw`."""
        from cat_serve.latents import latents_from_seeds

        return self.render(latents_from_seeds(seeds.tolist(), self.z_shape), classes, psi)

    def render(self, z: np.ndarray, classes: np.ndarray, psi: float | np.ndarray) -> np.ndarray:
        """Make the images of these latents and classes, uint8 [N, H, W, 3]; see `draw`."""
        assert self.engine is not None
        psis = np.broadcast_to(np.asarray(psi, dtype=np.float32), len(classes)).copy()
        parts = []
        for start in range(0, len(classes), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            output = self.engine(Batch(z[rows], classes[rows].astype(np.int64), psis[rows]))
            if not output.ok.all():
                bad = int(np.flatnonzero(~output.ok)[0])
                raise BadOutput(
                    f"Image {start + bad} of {len(classes)}, class {classes[rows][bad]}: the engine says not ok."
                )
            parts.append(output.images)
        return np.concatenate(parts)


def open_subject(path: Path) -> Subject:
    """Open an exported version folder in ONNX Runtime, a checkpoint in torch, or an npz of samples."""
    if path.suffix == ".npz":
        from cat_serve.files import sha256_of

        photographs, _ = read_npz(path)
        version = f"samples {sha256_of(path)[:12]}"
        return Subject({"model": path.stem, "version": version, "engine": "npz"} | _effort({}), made=photographs)  # fmt: skip
    if path.suffix == ".safetensors":
        return _checkpoint(path)
    from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
    from cat_serve.manifest import load_artefact

    artefact = load_artefact(path)
    backend = OnnxRuntimeBackend(artefact)
    manifest = artefact.manifest
    what = {"model": manifest.model, "version": artefact.version, "engine": backend.name}
    what |= _effort(manifest.source)
    return Subject(what, manifest.class_names, manifest.z_shape, backend.run)


def _checkpoint(path: Path) -> Subject:
    from cat_serve.files import sha256_of
    from cat_serve.model.checkpoint import load_checkpoint
    from cat_serve.model.fused import FusedModel

    checkpoint = load_checkpoint(path)
    version = f"checkpoint {sha256_of(path)[:12]}"
    what = {"model": checkpoint.name, "version": version, "engine": "torch"}
    what |= _effort(checkpoint.training)
    z_shape = checkpoint.generator.config.z_shape
    return Subject(what, checkpoint.class_names, z_shape, FusedModel.from_checkpoint(checkpoint).run)  # fmt: skip


def _effort(training: dict[str, Any]) -> dict[str, Any]:
    """Return what the training cost, None where nothing is known of it."""
    seconds = training.get("seconds")
    hours = None if seconds is None else round(seconds / 3600, 2)
    seed = training.get("config", {}).get("seed")
    return {"training_nimg": training.get("nimg"), "training_hours": hours, "seed": seed}
