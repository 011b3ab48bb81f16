"""The studio graphs: one class is the plain artefact, and mixtures and stages are what torch says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cat_serve.contract import StudioBatch, StudioOutput
from cat_serve.manifest import load_artefact
from export.graphs import onnx_engine
from export.probes import probe_batch, rows


@pytest.fixture
def studio(version_folder: Path) -> object:
    return onnx_engine(version_folder / "studio.onnx")


def test_one_class_at_weight_one_gives_the_bytes_of_the_plain_graph(
    version_folder: Path, studio: object
) -> None:
    batch = probe_batch(5, (64,))
    plain = onnx_engine(version_folder / "model.onnx")(batch)
    output = studio(StudioBatch.of(batch))  # type: ignore[operator]
    assert output.ok.all()
    assert output.images.tobytes() == plain.images.tobytes()


@pytest.mark.parametrize("slot", [1, 3])
def test_slot_of_the_class_does_not_matter(studio: object, slot: int) -> None:
    batch = StudioBatch.of(probe_batch(5, (64,)))
    moved = StudioBatch(
        batch.z,
        np.roll(batch.class_id, slot, axis=1),
        np.roll(batch.class_weight, slot, axis=1),
        batch.truncation_psi,
    )
    assert studio(moved).images.tobytes() == studio(batch).images.tobytes()  # type: ignore[operator]


def test_bad_weights_are_not_ok_and_harm_no_other_row(studio: object) -> None:
    batch = rows(StudioBatch.of(probe_batch(5, (64,))), slice(6))
    good: StudioOutput = studio(batch)  # type: ignore[operator]
    batch.class_weight[1] = [0.5, 0.4, 0, 0]
    batch.class_weight[2] = [1.5, -0.5, 0, 0]
    batch.class_weight[3] = np.nan
    batch.class_id[4, 3] = 5
    batch.class_weight[4] = [0.5, 0, 0, 0.5]
    output = studio(batch)  # type: ignore[operator]
    assert output.ok.tolist() == [True, False, False, False, False, True]
    for row in (0, 5):
        assert (output.stage_images[row] == good.stage_images[row]).all()


def test_shipped_studio_agrees_with_the_shipped_plain_graph(shipped_folder: Path) -> None:
    manifest = load_artefact(shipped_folder).manifest
    precision = manifest.files["studio.onnx"].precision
    batch = rows(probe_batch(10, (64,)), slice(12))
    plain = onnx_engine(load_artefact(shipped_folder).graph(precision or "fp32")[0])(batch)
    output = onnx_engine(shipped_folder / "studio.onnx")(StudioBatch.of(batch))
    assert np.abs(output.images.astype(int) - plain.images).max() <= 1
    assert output.stage_images.shape == (12, manifest.stages, 32, 32, 3)
    assert (output.stage_images[:, -1] == output.images).all()
    assert (output.stage_images[:, 0] != output.images).any()
