"""Pictures of `cat-serve generate`: the service's own bytes."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import httpx
import numpy as np
import pytest

from cat_serve.cli.pictures import read_seeds
from cat_serve.errors import InvalidInput
from cat_serve.images import read_parameters
from cat_serve.latents import MAX_SEED
from cat_serve.manifest import Artefact
from tests.serving.generating import Generate, served


@pytest.mark.parametrize("suffix", ["png", "webp", "jpeg"])
@pytest.mark.parametrize("seeds", ["3", "3-8"])
def test_picture_is_the_services_byte_for_byte(
    server: httpx.Client, generate: Generate, tmp_path: Path, suffix: str, seeds: str
) -> None:
    out = tmp_path / f"picture.{suffix}"
    generate(
        "--class", "Ankle_Boot", "--seeds", seeds, "--out", str(out), "--truncation-psi", "0.7"
    )
    n = 1 if seeds == "3" else 6
    expected = served(server, **{"class": 9}, seed=3, n=n, truncation_psi=0.7, format=suffix)
    assert out.read_bytes() == expected


def test_folder_has_the_file_that_the_service_gives_for_every_seed(
    server: httpx.Client, generate: Generate, tmp_path: Path
) -> None:
    seeds = [0, 1, 2, 9, MAX_SEED]
    flags = ["--class", "7", "--seeds", f"0-2,9,{MAX_SEED}", "--format", "webp"]
    report = generate(*flags, "--out", f"{tmp_path}/sneakers/")
    files = {path.name: path.read_bytes() for path in (tmp_path / "sneakers").iterdir()}
    assert files == {
        f"fashion-32_class-7_seed-{seed}.webp": served(
            server, **{"class": 7}, seed=seed, format="webp"
        )
        for seed in seeds
    }
    assert report["images"] == 5


@pytest.mark.parametrize(
    "parameters",
    [
        {"class": "7:0.7,9:0.3", "seeds": "2-4"},
        {"class": "sneaker", "seeds": "2,9,4", "stage": "1"},
        {"class": "7:0.25,9:0.75", "seeds": "5", "stage": "2"},
        {"class": "shirt", "seeds": "0-1,5"},
    ],
)
def test_mixtures_stages_and_seeds_with_gaps_are_the_services_too(
    server: httpx.Client, generate: Generate, tmp_path: Path, parameters: dict[str, str]
) -> None:
    out = tmp_path / "picture.png"
    flags = [part for name, value in parameters.items() for part in (f"--{name}", value)]
    report = generate(*flags, "--out", str(out))
    answer = server.post("/generate", params=parameters)
    assert answer.status_code == 200, answer.text
    assert out.read_bytes() == answer.content
    assert report["determinism"] == answer.headers["X-Determinism"]


def test_folder_of_a_stage_of_a_mixture_has_the_files_of_the_services_zip(
    server: httpx.Client, generate: Generate, tmp_path: Path
) -> None:
    mixture, seeds, stage = "7:0.25,9:0.75", "2,9,4", "1"
    generate("--class", mixture, "--seeds", seeds, "--stage", stage, "--out", str(tmp_path))
    zipped = served(server, **{"class": mixture}, seeds=seeds, stage=stage, response="zip")
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert len(files) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_array_holds_all_images(server: httpx.Client, generate: Generate, tmp_path: Path) -> None:
    generate("--class", "7", "--seeds", "4-6", "--out", str(tmp_path / "several.npy"))
    generate("--class", "7", "--seeds", "5", "--out", str(tmp_path / "one.npy"))
    several, one = np.load(tmp_path / "several.npy"), np.load(tmp_path / "one.npy")
    assert several.shape == (3, 32, 32, 3)
    assert np.array_equal(several[1], one)
    expected = served(server, **{"class": 7}, seed=4, n=3, format="npy", response="image")
    assert (tmp_path / "several.npy").read_bytes() == expected


def test_more_images_than_a_request_may_have_are_one_grid(
    generate: Generate, tmp_path: Path
) -> None:
    report = generate("--class", "1", "--seeds", "0-69", "--out", str(tmp_path / "grid.png"))
    parameters = read_parameters((tmp_path / "grid.png").read_bytes())
    assert (parameters["seed"], parameters["n"]) == (0, 70)
    assert report["images"] == 70


def test_last_line_tells_what_was_made(
    generate: Generate, tmp_path: Path, shipped: Artefact
) -> None:
    out = tmp_path / "one.png"
    report = generate("--class", "7", "--out", str(out), "--batch", "2")
    assert report["model"] == f"fashion-32@{shipped.version}"
    assert (report["images"], report["made"], report["determinism"]) == (1, 1, "bytes")
    assert (report["backend"], report["provider"], report["precision"]) == (
        "onnxruntime", "cpu", "fp32",
    )  # fmt: skip
    assert report["seconds"] > 0
    assert report["images_per_second"] > 0
    first = out.read_bytes()
    generate("--class", "7", "--seeds", report["seeds"], "--out", str(out))
    assert out.read_bytes() == first
    assert generate("--class", "7", "--out", str(out))["seeds"] != report["seeds"]


def test_seeds_are_read_in_the_order_that_they_are_written() -> None:
    assert list(read_seeds("42, 0-3,7")) == [42, 0, 1, 2, 3, 7]
    (drawn,) = read_seeds(None)
    assert 0 <= drawn <= MAX_SEED


@pytest.mark.parametrize(
    "text", ["", "a", "1,,2", "-1", "1-", "1.5", "3-1", "1,0-2", "0-100000", "\u0661"]
)
def test_what_are_no_seeds_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_seeds(text)
    assert caught.value.code == "bad_seeds"
