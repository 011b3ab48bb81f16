"""Which graph is run, what is promised of it, and how far its golden images may be off."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cat_serve.backends import open_backend
from cat_serve.backends.base import Backend, EngineOptions
from cat_serve.backends.fake import FakeBackend
from cat_serve.contract import Output, Precision
from cat_serve.errors import ArtefactError, BadOutput, InvalidInput
from cat_serve.golden import check_golden
from cat_serve.manifest import Artefact, load_artefact
from cat_serve.settings import Settings

PRECISIONS: list[Precision] = ["fp32", "fp16"]


def open_shipped(artefact: Artefact, precision: Precision) -> Backend:
    return open_backend("onnxruntime", artefact, EngineOptions(precision=precision))


def with_files(artefact: Artefact, files: dict[str, Any]) -> Artefact:
    return dataclasses.replace(
        artefact, manifest=dataclasses.replace(artefact.manifest, files=files)
    )


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_precision_proves_itself_by_the_same_golden_images(
    shipped: Artefact, precision: Precision
) -> None:
    backend = open_shipped(shipped, precision)
    assert backend.precision == precision
    check_golden(backend)


def test_precisions_are_different_graphs(shipped: Artefact) -> None:
    batch = shipped.manifest.golden.batch(shipped.manifest.z_shape)
    full, half = (open_shipped(shipped, p).run(batch).images for p in PRECISIONS)
    assert (full != half).any()
    assert np.abs(full.astype(int) - half).max() <= shipped.manifest.golden.max_levels["fp16"]


def test_default_precision_is_float32() -> None:
    assert EngineOptions().precision == Settings().precision == "fp32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_that_was_not_exported_is_refused_and_never_replaced(
    shipped: Artefact, precision: Precision
) -> None:
    name = shipped.graph(precision)[0].name
    files = {k: v for k, v in shipped.manifest.files.items() if k != name}
    with pytest.raises(ArtefactError, match=f"has no {name}: it was exported with") as caught:
        open_shipped(with_files(shipped, files), precision)
    assert "python -m export.onnx checkpoints/fashion-32.safetensors" in str(caught.value.hint)


def test_torch_engine_refuses_half(shipped: Artefact) -> None:
    with pytest.raises(InvalidInput, match="computes in fp32, not in fp16"):
        open_backend("torch", shipped, EngineOptions(precision="fp16"))


def test_promise_is_that_of_the_file_which_is_run(shipped: Artefact) -> None:
    files = dict(shipped.manifest.files)
    half = shipped.graph("fp16")[0].name
    files[half] = dataclasses.replace(files[half], determinism="latent")
    full = shipped.graph("fp32")[0].name
    files[full] = dataclasses.replace(files[full], determinism="bytes")
    artefact = with_files(shipped, files)
    assert [open_shipped(artefact, p).determinism for p in PRECISIONS] == ["bytes", "latent"]


def test_golden_images_have_a_tolerance_for_each_precision(add_model: Callable[..., Any]) -> None:
    artefact = add_model()
    golden = dataclasses.replace(artefact.manifest.golden, max_levels={"fp32": 0, "fp16": 4})
    artefact = add_model(golden=golden)

    def off_by_four(answer: Output) -> Output:
        return Output(answer.images ^ np.uint8(4), answer.ok)

    backend = FakeBackend(artefact, after=off_by_four)
    with pytest.raises(BadOutput, match="4 levels off, 0 not ok; 0 levels are allowed"):
        check_golden(backend)
    backend.precision = "fp16"
    check_golden(backend)


def test_manifest_of_the_first_format_says_what_to_run(
    add_model: Callable[..., Any], repository: Path
) -> None:
    folder = add_model().folder
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"format": "cat-serve-manifest-1"}))
    with pytest.raises(ArtefactError, match="format 'cat-serve-manifest-1'") as caught:
        load_artefact(folder)
    assert "python -m export.onnx checkpoints/toy.safetensors" in str(caught.value.hint)
    assert str(repository) not in str(caught.value)
