"""The proof an engine gives before it may serve: the golden images, made again."""

from __future__ import annotations

import numpy as np

from cat_serve.backends.base import Backend, StudioBackend
from cat_serve.contract import Batch, Output, Precision, StudioBatch
from cat_serve.errors import ArtefactError, BadOutput
from cat_serve.images import decode_png
from cat_serve.manifest import Artefact


def check_golden(backend: Backend) -> None:
    """Make the golden images again, one row first so that both shapes are warm.

    Raises:
        ArtefactError: the golden file is missing or of another shape.
        BadOutput: the engine's images differ by more than the manifest allows.
    """
    expected, batch = golden_pair(backend.artefact)
    backend.run(Batch(batch.z[:1], batch.class_id[:1], batch.truncation_psi[:1]))
    require_golden(backend.run(batch), expected, backend.artefact, backend.precision, backend.name)


def check_studio_golden(studio: StudioBackend) -> None:
    """Make the golden images again as mixtures of one class; the last stage must be the image.

    Raises:
        ArtefactError: the golden file is missing or of another shape.
        BadOutput: the studio's images differ by more than the manifest allows for its precision.
    """
    expected, batch = golden_pair(studio.artefact)
    output = studio.run(StudioBatch.of(batch))
    require_golden(output, expected, studio.artefact, studio.precision, f"{studio.name} (studio)")
    last = Output(output.stage_images[:, -1], output.ok)
    require_golden(last, expected, studio.artefact, studio.precision, f"{studio.name} (last stage)")


def golden_pair(artefact: Artefact) -> tuple[np.ndarray, Batch]:
    """Return the golden images, uint8 [N, H, W, 3], and the inputs that make them.

    Raises:
        ArtefactError: the file is missing, or of another shape.
    """
    manifest = artefact.manifest
    return read_golden(artefact), manifest.golden.batch(manifest.z_shape)


def require_golden(
    output: Output, expected: np.ndarray, artefact: Artefact, precision: Precision, engine: str
) -> None:
    """Refuse an engine's answer that is not near enough to the golden images.

    Args:
        engine: its name, for the error.

    Raises:
        BadOutput: it differs by more than the manifest allows for this precision.
    """
    manifest = artefact.manifest
    levels = np.abs(output.images.astype(np.int16) - expected.astype(np.int16)).max()
    allowed = manifest.golden.max_levels.get(precision, 0)
    if not output.ok.all() or levels > allowed:
        raise BadOutput(
            f"The model {manifest.model} on {engine} in {precision} does not make its golden "
            f"images: {levels} levels off, {(~output.ok).sum()} not ok; {allowed} levels are allowed.",
            hint="export the model on this machine again: python -m export.onnx --help",
            seeds=list(manifest.golden.seed),
        )


def read_golden(artefact: Artefact) -> np.ndarray:
    """Return the golden images, uint8 [N, H, W, 3]; their file has them below each other.

    Raises:
        ArtefactError: no such file, or of another shape.
    """
    golden = artefact.manifest.golden
    height, width = artefact.manifest.image_size
    shape = (len(golden.seed), height, width, 3)
    try:
        stacked = decode_png((artefact.folder / golden.file).read_bytes())
        return stacked.reshape(shape)
    except (OSError, ValueError) as error:
        raise ArtefactError(
            f"The golden images of {artefact.manifest.model!r} are missing or not {list(shape)}.",
            hint="restore the file, or export the model again: python -m export.onnx --help",
        ) from error
