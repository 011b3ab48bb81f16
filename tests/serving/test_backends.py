"""The contract that every engine keeps, in this process and on a real Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from cat_serve.backends import open_backend, open_engine
from cat_serve.backends.base import Backend, Engine, EngineOptions, TritonOptions
from cat_serve.contract import Batch, Output, Precision
from cat_serve.deadlines import NEVER
from cat_serve.errors import InvalidInput
from cat_serve.files import sha256_of
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import Artefact, Determinism, Golden, Manifest, load_artefact
from export.triton_server.server import TritonServer

CLASS_NAMES = ("apple", "boat", "cat", "door", "egg")


def write_checkpoint(path: Path) -> None:
    """Write a checkpoint of random weights, its gates and class means away from their first values."""
    import torch

    from cat_serve.model.checkpoint import Checkpoint, save_checkpoint
    from cat_serve.model.config import GeneratorConfig
    from cat_serve.model.generator import Generator
    from training.train_vae import VaeTraining, build_vae

    torch.manual_seed(0)
    config = GeneratorConfig(depth=3, width=32, heads=2, latent_size=8, num_classes=5)
    generator = Generator(config)
    for parameter in generator.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    generator.w_avg.normal_()
    vae = build_vae(VaeTraining(widths=(8, 8, 8)), 32)
    vae.register_to_config(scaling_factor=0.5)
    save_checkpoint(path, Checkpoint("tiny", generator, vae.eval(), CLASS_NAMES))


@pytest.fixture(scope="module")
def torch_artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_checkpoint(folder / "tiny.safetensors")
    manifest = Manifest(
        model="tiny",
        files={},
        class_names=CLASS_NAMES,
        z_shape=(64,),
        image_size=(32, 32),
        max_batch=8,
        golden=Golden("golden.png", (), (), (), {}),
        source={"checkpoint_sha256": sha256_of(folder / "tiny.safetensors")},
    )
    return Artefact(folder, manifest, "0" * 12)


class Awaited:
    """An engine elsewhere as one of this process: every pass is awaited on the loop of another thread."""

    precision: Precision = "fp32"

    def __init__(self, engine: Engine, portal: BlockingPortal) -> None:
        self.name, self.artefact = engine.name, engine.artefact
        self._engine, self._portal = engine, portal

    @property
    def determinism(self) -> Determinism:
        return self._engine.determinism

    def run(self, batch: Batch) -> Output:
        return self._portal.call(self._engine.run, lambda: batch, NEVER)


@pytest.fixture(scope="module")
def over_triton(triton_server: TritonServer, project_root: Path) -> Iterator[Awaited]:
    """The model that ships on a real Triton."""
    artefact = load_artefact(project_root / "model_repository" / "fashion-32" / "1")
    options = EngineOptions(triton=TritonOptions(urls=(triton_server.grpc_url,)))
    with start_blocking_portal() as portal:
        engine = portal.call(open_engine, "triton", artefact, options)
        assert engine.why_unavailable() is None
        yield Awaited(engine, portal)
        portal.call(engine.close)


@pytest.fixture(params=["onnxruntime", "onnxruntime fp16", "torch", "fake", "triton"])
def backend(
    request: pytest.FixtureRequest, add_model: Callable[..., Any], shipped: Artefact
) -> Iterator[Backend | Awaited]:
    name, _, precision = request.param.partition(" ")
    if name == "triton":
        yield request.getfixturevalue("over_triton")
        return
    if name == "torch":
        artefact = request.getfixturevalue("torch_artefact")
    else:
        artefact = shipped if name == "onnxruntime" else add_model()
    options = EngineOptions(checkpoints=artefact.folder, precision=precision or "fp32")
    opened = open_backend(name, artefact, options)
    yield opened
    opened.close()


def make_batch(backend: Backend, classes: list[int], psi: float = 1.0, seed: int = 0) -> Batch:
    size = len(classes)
    return Batch(
        latents_from_seeds(range(seed, seed + size), backend.artefact.manifest.z_shape),
        np.array(classes, dtype=np.int64),
        np.full(size, psi, dtype=np.float32),
    )


def assert_same(backend: Backend, a: np.ndarray, b: np.ndarray) -> None:
    """Bytes where the engine promises them; one level of rounding elsewhere."""
    levels = 0 if backend.determinism == "bytes" else 1
    assert np.abs(a.astype(int) - b.astype(int)).max() <= levels


@pytest.mark.parametrize("size", [1, 2, 5])
def test_answer_has_the_shapes_and_dtypes_of_the_contract(backend: Backend, size: int) -> None:
    answer = backend.run(make_batch(backend, list(range(size))))
    assert answer.images.shape == (size, *backend.artefact.manifest.image_size, 3)
    assert answer.images.dtype == np.uint8
    assert answer.ok.dtype == np.bool_
    assert answer.ok.tolist() == [True] * size


def test_same_inputs_give_the_same_bytes(backend: Backend) -> None:
    batch = make_batch(backend, [0, 1, 2])
    assert backend.run(batch).images.tobytes() == backend.run(batch).images.tobytes()


def test_row_does_not_depend_on_its_neighbours(backend: Backend) -> None:
    together = backend.run(make_batch(backend, [3, 1, 4, 1]))
    for row, class_id in enumerate([3, 1, 4, 1]):
        alone = backend.run(make_batch(backend, [class_id], seed=row))
        assert_same(backend, alone.images[0], together.images[row])


def test_class_and_seed_make_a_difference(backend: Backend) -> None:
    images = backend.run(make_batch(backend, [1, 1, 2])).images
    other = backend.run(make_batch(backend, [2], seed=0)).images[0]
    assert (images[0] != images[1]).any()
    assert (images[0] != other).any()


def test_psi_zero_forgets_the_seed_but_not_the_class(backend: Backend) -> None:
    images = backend.run(make_batch(backend, [1, 1, 2], psi=0)).images
    assert_same(backend, images[0], images[1])
    assert (images[0] != images[2]).any()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_id", -1),
        ("class_id", 10**6),
        ("truncation_psi", -0.1),
        ("truncation_psi", 1.1),
        ("truncation_psi", np.nan),
        ("z", np.nan),
    ],
)
def test_bad_row_is_marked_and_harms_no_other(backend: Backend, field: str, value: float) -> None:
    good = backend.run(make_batch(backend, [1, 2, 3]))
    batch = make_batch(backend, [1, 2, 3])
    batch.feeds()[field][1] = value
    answer = backend.run(batch)
    assert answer.ok.tolist() == [True, False, True]
    for row in (0, 2):
        assert_same(backend, answer.images[row], good.images[row])


def test_several_threads_may_run_at_once(backend: Backend) -> None:
    batches = [make_batch(backend, [i % 5], seed=i) for i in range(6)]
    expected = [backend.run(batch).images for batch in batches]

    def run(batch: Batch) -> Output:
        return backend.run(batch)

    with ThreadPoolExecutor(2) as pool:
        for answer, wanted in zip(pool.map(run, batches), expected, strict=True):
            assert answer.images.tobytes() == wanted.tobytes()


def test_triton_gives_the_bytes_of_the_engine_in_this_process(
    over_triton: Awaited, shipped: Artefact
) -> None:
    here = open_backend("onnxruntime", shipped, EngineOptions(threads=1))
    batch = make_batch(here, [3, 1, 4, 1, 5, 9, 2, 6], psi=0.7, seed=11)
    assert over_triton.determinism == "bytes"
    assert over_triton.run(batch).images.tobytes() == here.run(batch).images.tobytes()
    here.close()


def test_unknown_engine_is_refused_by_name(shipped: Artefact) -> None:
    with pytest.raises(InvalidInput, match="No backend 'warp'") as caught:
        open_backend("warp", shipped, EngineOptions())
    assert "onnxruntime" in str(caught.value.hint)
