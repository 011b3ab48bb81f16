"""What people are told of a data set before they train on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from training.data import Latents
from training.health import Duplicates, warnings_about
from training.prepare import main
from training.sources import ArraySource

WriteImages = Callable[..., Path]


def source(counts: dict[str, int]) -> ArraySource:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ArraySource(images, labels, tuple(counts), {"dataset": "drawn"})


def test_enough_of_every_class_is_no_warning() -> None:
    assert warnings_about(source({"ant": 300, "bee": 1300, "cow": 900})) == []


def test_too_few_photographs_say_what_to_expect() -> None:
    (warning,) = warnings_about(source({"ant": 299, "bee": 400}))
    assert warning.startswith(
        "1 of 2 classes have fewer than 300 photographs: ant (299); expect little variety"
    )
    (warning,) = warnings_about(source({"ant": 70, "bee": 49, "cow": 60, "dog": 80}))
    assert "4 of 4 classes" in warning
    assert (
        "bee (49), cow (60), ant (70), ...; below 50 the model repeats its photographs" in warning
    )


def test_unequal_classes_are_named() -> None:
    (warning,) = warnings_about(source({"ant": 4001, "bee": 400, "cow": 400}))
    assert "400 to 4001 photographs around a median of 400: ant (4001)" in warning
    assert warnings_about(source({"ant": 4000, "bee": 400, "cow": 400})) == []
    (warning,) = warnings_about(source({"ant": 399, "bee": 4000, "cow": 4000}))
    assert "ant (399)" in warning


def test_names_that_differ_in_case_are_pointed_at() -> None:
    (warning,) = warnings_about(source({"Cat": 400, "cat": 400, "dog": 400}))
    assert "classes differ in case alone: Cat, cat" in warning


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("0", "1", "2"), None),
        (("0", "2", "3"), "class 2 gets the index 1"),
        (("1", "2"), "class 1 gets the index 0"),
        (("0", "1", "01"), "1 comes twice: class 01 gets the index 2"),
        (("0", "2", "x"), None),
    ],
)
def test_numbers_that_are_not_their_index_are_pointed_at(
    names: tuple[str, ...], said: str | None
) -> None:
    warnings = warnings_about(source(dict.fromkeys(names, 400)))
    assert len(warnings) == (said is not None), warnings
    assert all(str(said) in each for each in warnings)


def test_duplicates_are_paired_with_the_first() -> None:
    contents = [b"a", b"b", b"a", b"", b"", b"a", b"b"]
    found = Duplicates.find(contents, np.array([0, 0, 0, 0, 1, 1, 1]))
    assert found.pairs == [(0, 2), (0, 5), (1, 6)]
    assert found.across == [(0, 5), (1, 6)]
    assert list(Duplicates.find([b"a", b""], np.array([0, 0])).warnings(["x", "y"])) == []


@pytest.mark.usefixtures("small_shards")
def test_duplicates_are_counted_over_all_shards(
    write_images: WriteImages,
    tmp_path: Path,
    vae_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the shard with the first of them was there already."""
    images = write_images(*(f"{label}/{n}.png" for label in "ab" for n in range(8)))
    shutil.copy(images / "a/1.png", images / "b/6.png")
    shutil.copy(images / "a/2.png", images / "a/3.png")
    out = tmp_path / "data"
    flags = ["--images", str(images), "--size", "32", "--vae", str(vae_folder), "--workers", "0", "--out", str(out)]  # fmt: skip
    assert main(flags) == 0
    printed, said = capsys.readouterr()
    report = json.loads(printed)
    assert report["duplicates"] == Latents(out).index.images["duplicates"] == 2
    assert "2 photographs come more than once: a/3.png is a/2.png; b/6.png is a/1.png" in said
    assert "1 of them lie in two classes" in said
    assert report["warnings"] == [each for each in report["warnings"] if each in said]
    assert len(report["warnings"]) == 1
    before = (out / "index.json").stat().st_mtime_ns
    assert main(flags) == 0  # counted once; not a reason to encode again
    assert json.loads(capsys.readouterr().out)["duplicates"] == 2
    assert (out / "index.json").stat().st_mtime_ns == before


def test_folders_that_differ_in_case_alone_stay_two_classes(
    write_images: WriteImages, tmp_path: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images("Cat/1.png", "cat/1.png")
    flags = ["--images", str(images), "--size", "32", "--vae", str(vae_folder), "--workers", "0"]
    assert main([*flags, "--out", str(tmp_path / "data")]) == 0
    assert "differ in case alone: Cat, cat" in capsys.readouterr().err
    assert Latents(tmp_path / "data").index.class_names == ("Cat", "cat")


# --- before the work -----------------------------------------------------------------------------


def test_dry_run_says_images_bytes_and_time_and_writes_nothing(
    write_images: WriteImages, tmp_path: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_images(*(f"{label}/{n}.png" for label in "ab" for n in range(6)))
    (images / "a/0.png").write_bytes(b"broken")
    flags = ["--images", str(images), "--size", "32", "--vae", str(vae_folder), "--workers", "0"]
    out = tmp_path / "new" / "data"
    assert main([*flags, "--out", str(out), "--dry-run", "--batch-size", "4"]) == 0
    printed, said = capsys.readouterr()
    report = json.loads(printed)
    assert not out.parent.exists()
    size = sum(path.stat().st_size for path in images.rglob("*.png"))
    assert (report["images"], report["classes"], report["source_bytes"]) == (12, 2, size)
    assert report["moments_bytes"] == 12 * 2 * 8 * 8 * 8 * 2
    assert (report["sampled"], report["broken"]) == (12, 1)
    assert report["seconds"] == pytest.approx(12 / report["images_per_second"], rel=0.02)
    assert report["warnings"]
    assert "12 photographs of 2 classes; moments 24.6 kB" in said
    assert main([*flags, "--out", str(out), "--max-broken", "0.5"]) == 0
    index = Latents(out).index
    stored = sum(np.load(out / name).nbytes for name in index.shards)
    assert stored == report["moments_bytes"] * index.count // 12


def test_dry_run_measures_the_rate_of_reading_and_encoding(
    vae_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the first batch, which waits for everything to start; and no longer than a minute."""
    from cat_serve.model.checkpoint import open_vae
    from training import estimate

    clock = [0.0]
    monkeypatch.setattr("training.estimate.time.perf_counter", lambda: clock[0])

    def take(vae: object, images: np.ndarray) -> np.ndarray:
        clock[0] += 50 if clock[0] == 0 else len(images) / 2
        return images

    monkeypatch.setattr("training.shards.encode", take)
    photographs = ArraySource(
        np.zeros((1000, 32, 32, 3), np.uint8), np.zeros(1000, np.int64), ("a",), {}
    )
    found = estimate.estimate(open_vae(vae_folder), photographs, tmp_path, 8)
    assert found.images_per_second == pytest.approx(2)
    assert found.seconds == pytest.approx(500)
    assert found.sampled == 32  # 50 s for the first batch, 4 for each other: past a minute
