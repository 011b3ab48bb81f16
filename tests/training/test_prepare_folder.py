"""An image folder becomes prepared data: broken images, changes, interruptions, and the way back to the images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

import training.prepare as preparation
import training.shards as shards
from cat_serve.errors import DataError
from cat_serve.model.checkpoint import open_vae
from training.data import Latents
from training.images import decode
from training.photographs import open_photographs
from training.prepare import build_parser, main

WriteImages = Callable[..., Path]
NAMES = tuple(f"{label}/{number}.png" for label in "abc" for number in range(8))


@pytest.fixture
def images(write_images: WriteImages) -> Path:
    """Three classes of eight images."""
    return write_images(*NAMES)


@pytest.fixture
def command(images: Path, vae_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "--images", str(images), "--size", "32", "--vae", str(vae_folder), "--workers", "0",
        "--out", str(tmp_path / "data"), "--max-broken", "0.2",
    ]  # fmt: skip


def prepared(command: list[str], *flags: str) -> Latents:
    arguments = build_parser().parse_args([*command, *flags])
    assert main([*command, *flags]) == 0
    return Latents(arguments.out)


def moments_of(path: Path, vae_folder: Path) -> torch.Tensor:
    """Encode one image by itself."""
    x = torch.from_numpy(decode(path.read_bytes(), 32)).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = open_vae(vae_folder).encode(x).latent_dist
    return torch.cat([posterior.mean, posterior.std], dim=1)[0]


@pytest.mark.usefixtures("small_shards")
def test_every_latent_is_that_of_its_image(
    command: list[str], images: Path, vae_folder: Path, tmp_path: Path
) -> None:
    data = prepared(command)
    assert data.index.class_names == ("a", "b", "c")
    assert data.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    files = json.loads((tmp_path / "data" / "images.json").read_text())["files"]
    assert files == list(NAMES)
    for index in (0, 9, 10, 23):
        expected = moments_of(images / files[index], vae_folder)
        got = data.moments(torch.tensor([index]))[0]
        torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "index.json", "images.json", "labels.npy", *(f"latents-0000{n}.npy" for n in range(3))
    }  # fmt: skip


def test_processes_read_what_one_process_reads(command: list[str], tmp_path: Path) -> None:
    alone = prepared(command)
    together = prepared(command, "--out", str(tmp_path / "other"), "--workers", "2")
    everything = torch.arange(24)
    assert torch.equal(alone.moments(everything), together.moments(everything))
    assert alone.index == together.index


@pytest.mark.usefixtures("small_shards")
def test_broken_images_are_named_counted_and_left_out(
    command: list[str],
    images: Path,
    vae_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = (images / "a/1.png").read_bytes()
    (images / "a/1.png").write_bytes(whole[: len(whole) // 2])
    (images / "b/1.png").write_bytes(b"")
    (images / "c/7.png").write_text("no image")
    data = prepared(command)
    out, err = capsys.readouterr()
    assert json.loads(out)["broken"] == data.index.images["broken"] == 3
    assert "broken: b/1.png: the file is empty" in err
    assert "3 of 24 photographs are broken and left out" in err
    listed = json.loads((tmp_path / "data" / "images.json").read_text())
    assert listed["broken"].keys() == {"a/1.png", "b/1.png", "c/7.png"}
    assert listed["files"] == [name for name in NAMES if name not in listed["broken"]]
    assert len(data) == 21
    assert data.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    for index, name in enumerate(listed["files"]):
        if index in (0, 1, 8, 20):
            expected = moments_of(images / name, vae_folder)
            got = data.moments(torch.tensor([index]))[0]
            torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


def test_too_many_broken_images_stop_it_and_nothing_is_lost(
    command: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        (images / f"b/{number}.png").write_bytes(b"")
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "5 of 24 photographs are broken, more than 20.00%: b/0.png: the file is empty" in error
    assert "--max-broken" in error
    assert len(prepared(command, "--max-broken", "0.3")) == 19


def test_class_without_a_readable_image_is_refused(
    command: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(8):
        (images / f"b/{number}.png").write_bytes(b"")
    assert main([*command, "--max-broken", "0.9"]) == 1
    assert "The class 'b' has no readable photograph" in capsys.readouterr().err


@pytest.mark.usefixtures("small_shards")
def test_interrupted_run_goes_on_and_remembers_what_was_broken(
    command: list[str],
    images: Path,
    tmp_path: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (images / "a/1.png").write_bytes(b"")
    whole = prepared(command, "--out", str(tmp_path / "whole"))
    assert encoded == [9, 10, 4]
    encoded.clear()
    write_array, written = shards.write_array, []

    def write_or_stop(path: Path, array: np.ndarray) -> None:
        if written:
            raise KeyboardInterrupt
        write_array(path, array)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_array", write_or_stop)
        assert main(command) == 130
    encoded.clear()
    data = prepared(command)
    assert encoded == [10, 4]
    assert data.index == whole.index
    assert data.index.images["broken"] == 1


def test_finished_folder_is_left_and_a_changed_one_is_made_anew(
    command: list[str], images: Path, encoded: list[int]
) -> None:
    first = prepared(command).index
    encoded.clear()
    assert prepared(command).index == first
    assert not encoded
    (images / "c/7.png").write_bytes((images / "a/0.png").read_bytes())
    second = prepared(command).index
    assert sum(encoded) == 24
    assert second.fingerprint != first.fingerprint
    encoded.clear()
    assert prepared(command, "--size", "64").index.latent_size == 16
    assert sum(encoded) == 24


def test_moved_folder_and_new_names_cost_no_encoding(
    command: list[str], images: Path, tmp_path: Path, encoded: list[int]
) -> None:
    first = prepared(command).index
    moved = images.rename(tmp_path / "moved")
    names = tmp_path / "names.json"
    names.write_text('["ant", "bee", "cat"]')
    encoded.clear()
    second = prepared(command, "--images", str(moved), "--class-names", str(names)).index
    assert not encoded
    assert second.class_names == ("ant", "bee", "cat")
    assert second.images["root"] == str(moved.resolve())
    assert second.fingerprint == first.fingerprint


def test_fingerprint_follows_the_bytes_and_not_the_clock(
    command: list[str], images: Path, encoded: list[int]
) -> None:
    first = prepared(command).index.fingerprint
    (images / "a/0.png").touch()
    encoded.clear()
    assert prepared(command).index.fingerprint == first
    assert sum(encoded) == 24  # it might have changed


def test_sd_vae_encodes_a_folder(command: list[str], tmp_path: Path) -> None:
    """SD-VAE's configuration in everything but the widths: 8 px a cell, one scale for all channels."""
    AutoencoderKL(
        latent_channels=4, norm_num_groups=4, block_out_channels=(4, 8, 8, 8), sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    ).save_pretrained(tmp_path / "pipeline" / "vae")  # fmt: skip
    data = prepared(command, "--vae", str(tmp_path / "pipeline"), "--size", "64")
    assert (data.index.latent_channels, data.index.latent_size) == (4, 8)
    moments = data.moments(torch.tensor([7]))
    x, y = data.batch(torch.tensor([7]), torch.Generator().manual_seed(1))
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(x, 0.18215 * (moments[:, :4] + moments[:, 4:] * noise))
    assert y.tolist() == [0]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--size", "30"], 2, "30 px do not divide by 4"),
        (["--size", "0"], 2, "--images needs --size"),
        (["--data", "somewhere"], 2, "name two data sets"),
        (["--workers", "-1"], 2, "--workers -1"),
        (["--max-broken", "1"], 2, "--max-broken 1.0 is no share"),
        (["--batch-size", "0"], 2, "--batch-size 0"),
        (["--device", "abacus"], 2, "No device 'abacus'"),
        (["--images", "nowhere"], 1, "There is no folder nowhere"),
        (["--class-names", "nowhere"], 2, "no file of class names"),
    ],
)
def test_wrong_arguments_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    assert main([*command, *flags]) == code
    assert said in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what is missing here")
def test_device_that_is_not_there_is_missing(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--device", "cuda"]) == 2
    assert "This machine has no device 'cuda'" in capsys.readouterr().err


def test_sizes_without_a_folder_are_refused(
    vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--vae", str(vae_folder), "--out", str(tmp_path / "data"), "--size", "32"]
    assert preparation.main(arguments) == 2
    assert "belong to image folders" in capsys.readouterr().err


# --- back to the images --------------------------------------------------------------------------


def test_teacher_sees_the_image_of_every_latent(command: list[str], images: Path) -> None:
    (images / "a/1.png").write_bytes(b"")
    data = prepared(command)
    batch = open_photographs(data).batch(torch.tensor([22, 0, 1]))
    assert (batch.shape, batch.dtype) == ((3, 3, 32, 32), torch.float32)
    for row, name in zip(batch, ("c/7.png", "a/0.png", "a/2.png"), strict=True):
        expected = decode((images / name).read_bytes(), 32) / 127.5 - 1
        np.testing.assert_allclose(row.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_moved_images_are_found_where_they_are_said_to_be(
    command: list[str], images: Path, tmp_path: Path
) -> None:
    data = prepared(command)
    moved = images.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="--photographs"):
        open_photographs(data)
    assert open_photographs(data, moved).batch(torch.tensor([5])).shape == (1, 3, 32, 32)


def test_image_that_has_changed_is_refused(command: list[str], images: Path) -> None:
    data = prepared(command)
    photographs = open_photographs(data)
    (images / "b/3.png").write_bytes(b"other")
    with pytest.raises(DataError, match=r"3\.png is not the photograph"):
        photographs.batch(torch.tensor([0, 11]))


def test_list_of_files_that_is_damaged_is_refused(command: list[str], tmp_path: Path) -> None:
    data = prepared(command)
    path = tmp_path / "data" / "images.json"
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=r"images\.json is damaged"):
        open_photographs(data)
