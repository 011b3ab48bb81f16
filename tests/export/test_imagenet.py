"""From a checkpoint shaped like an ImageNet model to an image over HTTP. The weights are random: nothing is trained."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from diffusers import AutoencoderKL

from cat_serve.images import decode_png
from cat_serve.manifest import load_artefact
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from export import onnx, random_checkpoint
from export.random_checkpoint import random_vae

NARROW = ["--size", "tiny", "--depth", "4", "--width", "32", "--heads", "2"]


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers writes it, of SD-VAE's shape but narrow."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "narrow-vae"
    random_vae((32, 64, 128, 128), 256).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def imagenet_repository(vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository made by the commands of docs/export.md, with little to compare."""
    folder = tmp_path_factory.mktemp("imagenet")
    made = [*NARROW, "--vae", str(vae_folder), "--out", str(folder / "checkpoints")]
    assert random_checkpoint.main(made) == 0
    checkpoint = folder / "checkpoints" / "cat-random-256.safetensors"
    repository = folder / "models"
    command = [str(checkpoint), "--repository", str(repository), "--precision", "fp32"]
    command += ["--studio-precision", "none", "--parity-classes", "1", "--max-batch", "2"]
    assert onnx.main(command) == 0
    return repository


@pytest.fixture(scope="module")
async def client(imagenet_repository: Path, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(model_repository=imagenet_repository))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        await app.state.service.settled.wait()
        yield client


def test_random_model_says_what_it_is(imagenet_repository: Path, vae_folder: Path) -> None:
    manifest = load_artefact(imagenet_repository / "cat-random-256" / "1").manifest
    assert manifest.model == "cat-random-256"
    assert manifest.source["weights"] == "random"
    assert "noise" in manifest.source["note"]
    assert manifest.source["decoder"].startswith("narrow-vae, sha256 ")
    assert (manifest.num_classes, manifest.image_size, manifest.z_shape) == (
        1000,
        (256, 256),
        (64,),
    )
    assert manifest.precisions == ("fp32",)
    assert len(manifest.golden.seed) == manifest.max_batch == 2  # an engine makes them in one batch


@pytest.mark.anyio
async def test_class_207_and_golden_retriever_are_the_same_bytes(client: httpx.AsyncClient) -> None:
    index = await client.post("/generate", params={"class": "207", "seed": 1})
    assert index.status_code == 200, index.text
    assert decode_png(index.content).shape == (256, 256, 3)
    for name in ("golden retriever", "Golden_Retriever"):
        named = await client.post("/generate", params={"class": name, "seed": 1})
        assert named.content == index.content
        assert named.headers["x-class"] == "207"
    other = await client.post("/generate", params={"class": "208", "seed": 1})
    assert other.content != index.content


@pytest.mark.anyio
async def test_unknown_and_ambiguous_names_are_explained(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/generate", params={"class": "golden retreiver", "seed": 1})
    assert unknown.status_code == 422
    assert unknown.json()["code"] == "unknown_class"
    assert "golden retriever" in unknown.json()["suggestions"]
    shared = await client.post("/generate", params={"class": "crane", "seed": 1})
    assert (shared.status_code, shared.json()["code"]) == (422, "ambiguous_class")
    assert shared.json()["accepted"] == [134, 517]
    beyond = await client.post("/generate", params={"class": "1000", "seed": 1})
    assert beyond.status_code == 422


def test_image_size_that_the_vae_cannot_make_is_refused(
    vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--vae", str(vae_folder), "--image-size", "100", "--out", str(tmp_path)]
    assert random_checkpoint.main(command) == 2
    assert "multiple of 8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_folder_without_a_vae_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_checkpoint.main(["--vae", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert re.search("is not a VAE folder", capsys.readouterr().err)


def measured(*command: str) -> tuple[dict[str, Any], float, float]:
    """Run one of our commands; return its JSON, its seconds, and the most GiB that any command took so far."""
    started = time.monotonic()
    run = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.PIPE, check=True)
    seconds = time.monotonic() - started
    peak_gib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    return json.loads(run.stdout.splitlines()[-1]), seconds, peak_gib


@pytest.mark.slow
def test_cat_m2_with_sd_vae_s_decoder_is_exported_within_24_gib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both at their real size, of random weights; time and memory are printed."""
    made, _, _ = measured(
        "export.random_checkpoint", "--size", "M", "--out", str(tmp_path)
    )  # fmt: skip
    assert made["decoder_parameters"] == 49_490_179  # SD-VAE's
    summary, seconds, peak_gib = measured(
        "export.onnx", made["checkpoint"], "--repository", str(tmp_path / "models"),
        "--studio-precision", "none", "--parity-classes", "1", "--max-batch", "1",
    )  # fmt: skip
    with capsys.disabled():
        print(
            f"\nCAT-M/2 with SD-VAE: {seconds:.0f} s, peak {peak_gib:.1f} GiB, {summary['parity']}"
        )
    weights = made["generator_parameters"] + made["decoder_parameters"]
    for name, size in (("model.onnx", 4), ("model.fp16.onnx", 2)):
        assert summary["size_bytes"][name] == pytest.approx(size * weights, rel=0.05)
    assert peak_gib < 24


@pytest.mark.slow
def test_weights_beyond_2_gb_lie_beside_the_graph(tmp_path: Path) -> None:
    """CAT-H's on a small grid, where an image is quick: 3.8 GB in float32."""
    made, _, _ = measured(
        "export.random_checkpoint", "--size", "H", "--image-size", "128", "--out", str(tmp_path),
        "--vae-widths", "32", "32", "32", "32",
    )  # fmt: skip
    summary, seconds, peak_gib = measured(
        "export.onnx", made["checkpoint"], "--repository", str(tmp_path / "models"), "--precision",
        "fp32", "--studio-precision", "none", "--parity-classes", "1", "--max-batch", "1",
    )  # fmt: skip
    print(f"CAT-H on a grid of 16: {seconds:.0f} s, peak {peak_gib:.1f} GiB")
    assert summary["size_bytes"]["model.onnx"] < 2**24
    assert summary["size_bytes"]["model.onnx.data"] > 2**31
    assert load_artefact(Path(summary["folder"])).manifest.files.keys() > {"model.onnx.data"}
    assert peak_gib < 24


def test_narrow_vae_is_sd_vae_but_for_its_widths(vae_folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(vae_folder, low_cpu_mem_usage=False)
    assert vae.config.scaling_factor == 0.18215
    assert (vae.config.latent_channels, vae.config.layers_per_block) == (4, 2)
    assert len(vae.decoder.up_blocks) == 4
