"""Generators of other families through the whole line: export, manifest, TensorRT, Triton, HTTP. Small, of random weights."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from cat_serve.backends import open_backend
from cat_serve.backends.base import EngineOptions
from cat_serve.cli import main as cat_serve
from cat_serve.contract import Batch, Precision
from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.golden import check_golden
from cat_serve.images import decode_png
from cat_serve.latents import latents_from_seeds
from cat_serve.manifest import load_artefact
from cat_serve.model.checkpoint import Checkpoint, cat_generator, load_checkpoint, save_checkpoint
from cat_serve.model.fused import FusedModel
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export import onnx, random_checkpoint
from export.decoder import replaced
from export.onnx import ExportOptions, export
from export.random_checkpoint import random_tiny
from export.random_families import FAMILIES, affine_of, random_generator
from export.triton.__main__ import main as triton
from export.trt.__main__ import main as trt
from training.train_vae import VaeTraining, build_vae

from .conftest import CLASS_NAMES

SIZES = {"depth": 2, "width": 16, "heads": 2}
LATENTS, PIXELS = "latents", "pixels"
PUBLISHED = {"metric": "FID-50K, one step", "value": 1.72, "source": "arXiv 2512.02012"}
TRAINING = {"family": "iMF", "weights": "random", "licence": "MIT", "published": PUBLISHED}


def make(name: str, family: str, side: int) -> Checkpoint:
    """Make a model of latents, decoded to four pixels a cell, or of pixels."""
    kind = FAMILIES[family]
    config = kind.config(SIZES, side, 3 if kind.is_pixels else 4, len(CLASS_NAMES))
    generator = random_generator(config, seed=0)
    if kind.is_pixels:
        return Checkpoint(name, generator, None, CLASS_NAMES, TRAINING)
    torch.manual_seed(0)
    vae = build_vae(VaeTraining(widths=(8, 8, 8)), 32).eval().requires_grad_(False)
    affine = affine_of(kind, config)
    return Checkpoint(name, generator, vae, CLASS_NAMES, TRAINING, affine)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    made = {LATENTS: make(LATENTS, "imf", 8), PIXELS: make(PIXELS, "pmf", 32)}
    for name, checkpoint in made.items():
        save_checkpoint(folder / f"{name}.safetensors", checkpoint)
    return {name: folder / f"{name}.safetensors" for name in made}


def exported(checkpoint: Path, folder: Path, precision: Precision) -> Path:
    options = ExportOptions(precisions=(precision,), max_batch=4, parity_classes=2)
    return export(checkpoint, folder, options=options)


@pytest.fixture(scope="module")
def repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of latents, exported in float32."""
    return exported(
        checkpoints[LATENTS], tmp_path_factory.mktemp("repository"), "fp32"
    ).parent.parent


@pytest.fixture(scope="module")
def half_repository(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, exported in half precision."""
    folder = tmp_path_factory.mktemp("half")
    for name in (LATENTS, PIXELS):
        exported(checkpoints[name], folder, "fp16")
    return folder


@asynccontextmanager
async def served(repository: Path, precision: Precision) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(model_repository=repository, model=LATENTS, precision=precision))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client,
    ):
        await app.state.service.settled.wait()
        yield client


@pytest.fixture(scope="module")
async def client(repository: Path, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with served(repository, "fp32") as client:
        yield client


# --- export ----------------------------------------------------------------------------------


def assert_says_what_it_lacks(folder: Path, z_shape: tuple[int, ...]) -> None:
    manifest = load_artefact(folder).manifest
    assert manifest.z_shape == z_shape
    assert manifest.image_size == (32, 32)
    assert manifest.psi == {"meaning": "none", "neutral": 1.0}
    assert manifest.stages == 0
    assert "studio.onnx" not in manifest.files
    assert manifest.source["licence"] == "MIT"
    assert manifest.source["published"] == PUBLISHED
    for report in manifest.parity.values():
        assert report["difference"]["not_ok"] == 0


def assert_images_of_torch(folder: Path, checkpoint: Path, precision: Precision) -> None:
    artefact = load_artefact(folder)
    backend = open_backend("onnxruntime", artefact, EngineOptions(precision=precision))
    check_golden(backend)
    z = latents_from_seeds(range(5), artefact.manifest.z_shape)
    batch = Batch(z, np.arange(5), np.ones(5, dtype=np.float32))
    expected = FusedModel.from_checkpoint(load_checkpoint(checkpoint)).run(batch)
    made = backend.run(batch)
    assert made.ok.all()
    worst = np.abs(made.images.astype(int) - expected.images.astype(int)).max()
    assert worst <= (1 if precision == "fp32" else 12)
    assert made.images.std() > 10  # not one colour
    assert len({image.tobytes() for image in made.images}) == 5


def test_model_of_latents_is_exported(repository: Path, checkpoints: dict[str, Path]) -> None:
    folder = repository / LATENTS / "1"
    assert_says_what_it_lacks(folder, (4, 8, 8))
    assert_images_of_torch(folder, checkpoints[LATENTS], "fp32")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "z_shape"), [(LATENTS, (4, 8, 8)), (PIXELS, (3, 32, 32))])
def test_models_are_exported_in_half(
    half_repository: Path, checkpoints: dict[str, Path], name: str, z_shape: tuple[int, ...]
) -> None:
    folder = half_repository / name / "1"
    assert_says_what_it_lacks(folder, z_shape)
    assert_images_of_torch(folder, checkpoints[name], "fp16")


def test_psi_stays_an_input_and_out_of_range_is_not_ok(repository: Path) -> None:
    artefact = load_artefact(repository / LATENTS / "1")
    backend = open_backend("onnxruntime", artefact, EngineOptions())
    z = np.repeat(latents_from_seeds([0], artefact.manifest.z_shape), 4, axis=0)
    psi = np.array([1, 0.5, 1.5, np.nan], dtype=np.float32)
    output = backend.run(Batch(z, np.array([0, 0, 0, 0]), psi))
    assert output.ok.tolist() == [True, True, False, False]
    np.testing.assert_array_equal(output.images[0], output.images[1])


def test_studio_of_a_model_without_stages_is_a_usage_error(
    checkpoints: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoints[LATENTS]), "--repository", str(tmp_path), "--studio-precision", "fp16"]  # fmt: skip
    assert onnx.main(command) == 2
    assert "has no stages" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_random_checkpoints_of_every_family_make_images(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--family", family, "--size", "tiny", "--depth", "3", "--width", "16", "--heads", "2"]
    words += ["--image-size", "32", "--vae-widths", "32", "32", "--out", str(tmp_path)]
    assert random_checkpoint.main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    checkpoint = load_checkpoint(Path(report["checkpoint"]))
    assert checkpoint.training["weights"] == report["weights"] == "random"
    assert (checkpoint.vae is None) == (family == "pmf")
    assert checkpoint.image_size == (32, 32)
    z = latents_from_seeds([0, 0, 1], checkpoint.generator.config.z_shape)
    output = FusedModel.from_checkpoint(checkpoint).run(
        Batch(z, np.array([0, 999, 0]), np.ones(3, dtype=np.float32))
    )
    assert output.ok.all()
    assert len({image.tobytes() for image in output.images}) == 3


@pytest.mark.parametrize("flags", [["--tiny"], ["--vae", "folder"]])
def test_decoder_for_a_family_of_pixels_is_a_usage_error(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_checkpoint.main(["--family", "pmf", *flags, "--out", str(tmp_path)]) == 2
    assert "has no decoder" in capsys.readouterr().err


# --- checkpoints -----------------------------------------------------------------------------


def test_checkpoint_comes_back_with_its_scale_of_latents(checkpoints: dict[str, Path]) -> None:
    loaded, made = load_checkpoint(checkpoints[LATENTS]), make(LATENTS, "imf", 8)
    assert loaded.generator.config == made.generator.config
    assert loaded.affine is not None
    assert made.affine is not None
    assert loaded.affine.kind == "per channel"
    assert torch.equal(loaded.affine.mean, made.affine.mean)
    assert load_checkpoint(checkpoints[PIXELS]).affine is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (4, 8, 8)])
def test_scale_of_latents_is_applied_before_the_decoder(shape: tuple[int, ...]) -> None:
    from cat_serve.model.decoder import Decoder
    from cat_serve.model.vae import LatentAffine

    vae = make(LATENTS, "imf", 8).vae
    assert vae is not None
    affine = LatentAffine(torch.randn(shape), 1 + torch.rand(shape))
    latents = torch.randn(2, 4, 8, 8)
    expected = vae.decode(latents * affine.std + affine.mean).sample
    torch.testing.assert_close(Decoder(vae, affine)(latents), expected)


@pytest.mark.parametrize("shape", [(3, 1, 1), (4, 8, 1, 1), (4, 7, 8)])
def test_scale_that_fits_no_latents_is_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    from cat_serve.model.vae import LatentAffine

    checkpoint = make(LATENTS, "imf", 8)
    checkpoint.affine = LatentAffine(torch.zeros(shape), torch.ones(shape))
    save_checkpoint(tmp_path / "odd.safetensors", checkpoint)
    with pytest.raises(CheckpointError, match="scale of latents"):
        load_checkpoint(tmp_path / "odd.safetensors")


def test_tiny_decoder_takes_latents_as_sd_vae_scaled_them() -> None:
    checkpoint = make(LATENTS, "imf", 8)
    assert checkpoint.vae is not None
    assert checkpoint.affine is not None
    checkpoint.vae.register_to_config(scaling_factor=0.18215)
    there = replaced(checkpoint, random_tiny())
    assert there.affine is not None
    torch.testing.assert_close(there.affine.std, checkpoint.affine.std * 0.18215)
    torch.testing.assert_close(there.affine.mean, checkpoint.affine.mean * 0.18215)
    assert replaced(checkpoint, checkpoint.vae).affine is checkpoint.affine


def test_where_only_cat_s_generator_will_do_others_are_named() -> None:
    with pytest.raises(CheckpointError, match="no CAT generator"):
        cat_generator(make(PIXELS, "pmf", 32))


# --- engines ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [LATENTS, PIXELS])
def test_tensorrt_takes_the_graph(
    half_repository: Path, name: str, engine_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = half_repository / name / "1" / "model.fp16.onnx"
    flags = ["--builder", "tensorrt-rtx", "--opt-batch", "2", "--max-batch", "4", "--compute-capability", "89"]  # fmt: skip
    assert trt([str(graph), *flags]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    z_shape = [4, 8, 8] if name == LATENTS else [3, 32, 32]
    assert report["inputs"]["z"] == {"dtype": "float", "shape": [-1, *z_shape]}
    assert set(report["inputs"]) == {"z", "class_id", "truncation_psi"}


def test_triton_s_configuration_has_the_latent_s_shape(repository: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "triton"
    shutil.copytree(repository / LATENTS, folder / LATENTS)
    assert triton([str(folder)]) == 0
    text = (folder / LATENTS / "config.pbtxt").read_text().replace(" ", "").replace("\n", "")
    assert "dims:4dims:8dims:8" in text or "dims:[4,8,8]" in text
    assert triton([str(folder), "--check"]) == 0


def test_friendly_model_refuses_a_truncation(repository: Path) -> None:
    from cat_serve.embedded import classes_of
    from cat_serve.triton_models.asked import parse
    from cat_serve.triton_models.catalogue import Catalogue
    from cat_serve.wanted import ServedModel

    artefact = load_artefact(repository / LATENTS / "1")
    catalogue = Catalogue({LATENTS: ServedModel(artefact, classes_of(artefact))}, {LATENTS: 1}, LATENTS)  # fmt: skip
    columns: dict[str, Any] = {"class_id": np.array([0]), "seed": np.array([1])}
    assert len(parse(columns, catalogue).images) == 1
    with pytest.raises(InvalidInput, match="means nothing"):
        parse(columns | {"truncation_psi": np.array([0.5], dtype=np.float32)}, catalogue)


# --- HTTP ------------------------------------------------------------------------------------


async def assert_images_come(client: httpx.AsyncClient, model: str) -> None:
    query = {"class": "boat", "seed": 3, "model": model}
    answer = await client.post("/generate", params=query)
    assert answer.status_code == 200, answer.text
    assert decode_png(answer.content).shape == (32, 32, 3)
    neutral = await client.post("/generate", params=query | {"truncation_psi": 1})
    assert neutral.content == answer.content
    other = await client.post("/generate", params=query | {"class": "cat"})
    assert other.content != answer.content


@pytest.mark.anyio
async def test_image_and_its_class_come_over_http(client: httpx.AsyncClient) -> None:
    await assert_images_come(client, LATENTS)


@pytest.mark.slow
@pytest.mark.anyio
async def test_pixels_and_latents_are_served_side_by_side(half_repository: Path) -> None:
    async with served(half_repository, "fp16") as client:
        for name in (LATENTS, PIXELS):
            await assert_images_come(client, name)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("route", "asked", "code"),
    [
        ("/generate", {"class": "1", "truncation_psi": 0.7}, "bad_truncation_psi"),
        ("/generate", {"class": "1", "truncation_psi": 0}, "bad_truncation_psi"),
        ("/interpolate", {"class": ["1"], "seed": [1, 2], "truncation_psi": 0.7}, "bad_truncation_psi"),
        ("/generate", {"class": "1", "stage": 1}, "no_studio"),
        ("/generate", {"class": "1:0.5,2:0.5"}, "no_studio"),
    ],
)  # fmt: skip
async def test_what_means_nothing_is_a_422_with_a_hint(
    client: httpx.AsyncClient, route: str, asked: dict[str, Any], code: str
) -> None:
    answer = await client.post(route, json=asked)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
    assert answer.json()["hint"]


@pytest.mark.anyio
async def test_openai_s_route_says_so_in_its_own_shape(client: httpx.AsyncClient) -> None:
    body = {"prompt": "boat", "truncation_psi": 0.5, "response_format": "b64_json"}
    answer = await client.post("/v1/images/generations", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert "means nothing" in answer.json()["error"]["message"]


@pytest.mark.anyio
async def test_card_shows_licence_and_published_figure(client: httpx.AsyncClient) -> None:
    (card,) = (await client.get("/models")).json()["models"]
    assert card["truncation_psi"]["meaning"] == "none"
    assert card["stages"] == 0
    assert card["source"]["licence"] == "MIT"
    assert card["source"]["published"] == PUBLISHED


def test_command_line_refuses_a_truncation(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "generate",
        "--model",
        LATENTS,
        "--model-repository",
        str(repository),
        "--class",
        "1",
    ]
    command += ["--seeds", "1", "--precision", "fp32", "--out", str(tmp_path / "a.png")]
    assert cat_serve([*command, "--truncation-psi", "0.5"]) == 2
    assert "means nothing" in capsys.readouterr().err
    assert cat_serve(command) == 0
