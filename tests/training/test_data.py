"""Fashion-MNIST's files, their encoding, and the prepared data."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import training.prepare as preparation
import training.shards as shards
from cat_serve.errors import DataError, MissingDependency
from cat_serve.model.vae import load_vae, vae_sha256
from training.data import Latents
from training.fashion_mnist import CLASS_NAMES, load_split, read_idx, to_rgb32
from training.prepare import prepare
from training.sources import ArraySource

Photographs = tuple[np.ndarray, np.ndarray]
SOURCE: dict[str, object] = {"dataset": "drawn", "split": "train"}
COUNT = 24


# --- the reader ----------------------------------------------------------------------------------


def test_idx_bytes_come_back(tmp_path: Path, write_idx: Callable[[Path, np.ndarray], None]) -> None:
    array = np.random.RandomState(0).randint(0, 256, (3, 4, 5)).astype(np.uint8)
    write_idx(tmp_path / "x.gz", array)
    np.testing.assert_array_equal(read_idx(tmp_path / "x.gz"), array)


def test_split_has_images_and_labels(idx_folder: Path) -> None:
    images, labels = load_split("train", idx_folder)
    assert (images.shape, images.dtype) == ((COUNT, 28, 28), np.uint8)
    assert (labels.dtype, labels.tolist()) == (np.int64, [n % 10 for n in range(COUNT)])
    assert len(load_split("test", idx_folder)[0]) == 10


def test_missing_file_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="apt-get install dataset-fashion-mnist"):
        load_split("train", tmp_path)


WHOLE = b"\0\0\x08\x01\0\0\0\x04abcd"


@pytest.mark.parametrize(
    "raw",
    [
        WHOLE,
        gzip.compress(WHOLE)[:-9],
        gzip.compress(WHOLE, mtime=0)[:10] + b"\xff" * 20,
        gzip.compress(WHOLE[:-1]),
        gzip.compress(WHOLE + b"e"),
        gzip.compress(WHOLE[:6]),
        gzip.compress(WHOLE[:2] + b"\x0d" + WHOLE[3:]),
        gzip.compress(b"\1" + WHOLE[1:]),
        b"",
    ],
    ids=[
        "not gzipped", "cut off", "corrupt", "too short", "too long", "half a header", "floats",
        "no IDX", "empty",
    ],
)  # fmt: skip
def test_damaged_idx_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"labels\.gz"):
        read_idx(path)


@pytest.mark.parametrize(
    ("labels", "named"), [(np.arange(9), r"\(9,\)"), (np.arange(10) + 1, "10")]
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path,
    idx_folder: Path,
    write_idx: Callable[[Path, np.ndarray], None],
    labels: np.ndarray,
    named: str,
) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    shutil.copy(idx_folder / name, tmp_path / name)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels)
    with pytest.raises(DataError, match=named):
        load_split("test", tmp_path)


def test_photographs_are_padded_with_background_and_made_grey_rgb() -> None:
    images = np.random.RandomState(0).randint(1, 256, (2, 28, 28)).astype(np.uint8)
    rgb = to_rgb32(images)
    assert (rgb.shape, rgb.dtype) == ((2, 32, 32, 3), np.uint8)
    for channel in range(3):
        np.testing.assert_array_equal(rgb[:, 2:30, 2:30, channel], images)
    assert np.count_nonzero(rgb) == 3 * images.size  # the border is 0


# --- prepare -------------------------------------------------------------------------------------


def run_prepare(vae_folder: Path, photographs: Photographs, out: Path) -> None:
    prepare(vae_folder, ArraySource(*photographs, CLASS_NAMES, SOURCE), out, batch_size=4)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.usefixtures("small_shards")
def test_shards_hold_the_posterior_moments(
    vae_folder: Path, photographs: Photographs, tmp_path: Path
) -> None:
    run_prepare(vae_folder, photographs, tmp_path)
    images, labels = photographs
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mean, log_variance = load_vae(vae_folder)._encode(x).chunk(2, dim=1)
    moments = torch.cat([mean, (log_variance / 2).exp()], dim=1).numpy()
    shards = [np.load(tmp_path / f"latents-{n:05d}.npy") for n in range(3)]
    assert [shard.shape for shard in shards] == [(n, 16, 8, 8) for n in (10, 10, 4)]
    assert {shard.dtype for shard in shards} == {np.dtype(np.float16)}
    np.testing.assert_allclose(np.concatenate(shards), moments, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), labels)
    index = Latents(tmp_path).index
    assert (index.count, index.latent_channels, index.latent_size) == (COUNT, 8, 8)
    assert index.class_names == CLASS_NAMES
    assert index.latents_mean == (0.5, -0.25, 0.0, 1.0) * 2
    assert index.latents_std == pytest.approx((2 / 1.7, 1 / 1.7, 0.5 / 1.7, 3 / 1.7) * 2)
    assert index.vae_sha256 == vae_sha256(load_vae(vae_folder))
    assert index.images == SOURCE


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("finished_shards", [0, 1, 2, 3])
def test_interrupted_run_goes_on_with_the_first_missing_shard(
    vae_folder: Path,
    photographs: Photographs,
    tmp_path: Path,
    encoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
    finished_shards: int,
) -> None:
    run_prepare(vae_folder, photographs, tmp_path / "whole")
    calls = [4, 4, 2, 4, 4, 2, 4]  # batches of 4 in shards of 10, 10 and 4
    assert encoded == calls
    write_array, written = shards.write_array, []

    def write_or_stop(path: Path, array: np.ndarray) -> None:
        if len(written) == finished_shards:  # with all three there, the labels are lost
            raise KeyboardInterrupt
        write_array(path, array)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_array", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run_prepare(vae_folder, photographs, tmp_path / "cut")
    with pytest.raises(DataError, match="no prepared data"):
        Latents(tmp_path / "cut")
    encoded.clear()
    run_prepare(vae_folder, photographs, tmp_path / "cut")
    assert encoded == calls[3 * finished_shards :]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.usefixtures("small_shards")
def test_finished_folder_is_left_as_it_is(
    vae_folder: Path, photographs: Photographs, tmp_path: Path, encoded: list[int]
) -> None:
    run_prepare(vae_folder, photographs, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    encoded.clear()
    run_prepare(vae_folder, photographs, tmp_path)
    assert not encoded
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.usefixtures("small_shards")
def test_damaged_folder_is_made_anew(
    vae_folder: Path, photographs: Photographs, tmp_path: Path
) -> None:
    run_prepare(vae_folder, photographs, tmp_path)
    whole = contents(tmp_path)
    shard = tmp_path / "latents-00001.npy"
    shard.write_bytes(shard.read_bytes()[:-100])
    run_prepare(vae_folder, photographs, tmp_path)
    assert contents(tmp_path) == whole


@pytest.mark.usefixtures("small_shards")
def test_another_vae_encodes_everything_anew(
    make_vae_folder: Callable[[int], Path],
    vae_folder: Path,
    photographs: Photographs,
    tmp_path: Path,
    encoded: list[int],
) -> None:
    other = make_vae_folder(1)
    run_prepare(vae_folder, photographs, tmp_path / "both")
    first = Latents(tmp_path / "both").index
    encoded.clear()
    run_prepare(other, photographs, tmp_path / "both")
    second = Latents(tmp_path / "both").index
    assert sum(encoded) == COUNT
    assert first.fingerprint != second.fingerprint
    assert second.vae_sha256 == vae_sha256(load_vae(other))
    run_prepare(other, photographs, tmp_path / "other")
    assert contents(tmp_path / "both") == contents(tmp_path / "other")


def test_prepare_command_reports_what_it_made(
    vae_folder: Path, idx_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "data"
    arguments = ["--data", str(idx_folder), "--vae", str(vae_folder), "--out", str(out)]
    assert preparation.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["count"] == COUNT
    assert report["fingerprint"] == Latents(out).index.fingerprint
    assert Latents(out).index.images["dataset"] == "fashion-mnist"


@pytest.mark.parametrize(("missing", "code"), [("--data", 2), ("--vae", 1)])
def test_prepare_command_says_what_is_missing(
    vae_folder: Path,
    idx_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    code: int,
) -> None:
    folders = {"--data": idx_folder, "--vae": vae_folder} | {missing: tmp_path / "nothing"}
    arguments = [str(part) for pair in folders.items() for part in pair]
    assert preparation.main([*arguments, "--out", str(tmp_path / "out")]) == code
    assert "\nerror: " in "\n" + capsys.readouterr().err


# --- the prepared data ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small_shards")
def test_batch_draws_from_the_posterior_and_standardises_each_channel(
    vae_folder: Path, photographs: Photographs, tmp_path: Path
) -> None:
    run_prepare(vae_folder, photographs, tmp_path)
    data = Latents(tmp_path)
    wanted = torch.tensor([23, 0, 10, 9, 19, 20, 0])  # both ends of each shard
    shards = np.concatenate([np.load(tmp_path / f"latents-{n:05d}.npy") for n in range(3)])
    moments = torch.from_numpy(shards[wanted.numpy()]).float()
    assert torch.equal(data.moments(wanted), moments)
    x, y = data.batch(wanted, torch.Generator().manual_seed(3))
    noise = torch.randn(7, 8, 8, 8, generator=torch.Generator().manual_seed(3))
    drawn = moments[:, :8] + moments[:, 8:] * noise
    mean = torch.tensor([0.5, -0.25, 0.0, 1.0] * 2).view(8, 1, 1)
    std = torch.tensor([2.0, 1.0, 0.5, 3.0] * 2).view(8, 1, 1) / 1.7
    torch.testing.assert_close(x, (drawn - mean) / std)
    assert y.tolist() == [n % 10 for n in wanted.tolist()]
    assert len(data) == COUNT


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def claim_more(path: Path) -> None:
    path.write_text(path.read_text().replace(f'"count": {COUNT}', f'"count": {COUNT + 1}'))


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("index.json", Path.unlink),
        ("index.json", cut_off),
        ("index.json", claim_more),
        ("index.json", lambda path: path.write_text("[]")),
        ("index.json", lambda path: path.write_text("{}")),
        ("latents-00000.npy", Path.unlink),
        ("latents-00000.npy", cut_off),
        ("latents-00000.npy", lambda path: path.write_bytes(b"")),
        ("labels.npy", Path.unlink),
        ("labels.npy", cut_off),
        ("labels.npy", lambda path: np.save(path, np.zeros(COUNT - 1, np.int64))),
    ],
)
def test_damaged_data_are_refused(
    prepared: Path, tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    Latents(folder)
    spoil(folder / name)
    with pytest.raises(DataError, match=r"training\.prepare"):
        Latents(folder)
