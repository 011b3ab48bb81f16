"""`cat-serve reproduce`: the same picture again, or what is different, or why it cannot be made."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cat_serve.animation import encode_animation
from cat_serve.cli import main
from cat_serve.images import decode_png, encode, read_parameters
from cat_serve.repository import find_repository, find_version
from cat_serve.reproduce import read_picture
from cat_serve.web.server import bind

BASE = {"class": "ankle boot", "seed": 3, "truncation_psi": 0.7}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of the model that ships, as `cat-serve generate` writes them."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, seeds in (("one.png", "3"), ("one.jpeg", "3"), ("one.webp", "3"), ("grid.png", "3-7"),
                        ("grid.webp", "3-7"), ("grid.jpeg", "3-7")):  # fmt: skip
        code = main(["generate", "--class", "ankle boot", "--seeds", seeds, "--truncation-psi",
                     "0.7", "--threads", "1", "--out", str(folder / name)])  # fmt: skip
        assert code == 0
    return folder


def reproduce(capsys: pytest.CaptureFixture[str], path: Path, *more: str) -> tuple[int, Any, str]:
    """Return exit code, the last line's JSON, and stderr."""
    capsys.readouterr()
    code = main(["reproduce", str(path), "--threads", "1", *more])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return code, json.loads(lines[-1]) if lines else None, captured.err


@pytest.mark.parametrize(
    "name", ["one.png", "one.jpeg", "one.webp", "grid.png", "grid.webp", "grid.jpeg"]
)
def test_picture_is_identical(capsys: Any, pictures: Path, name: str, tmp_path: Path) -> None:
    again = tmp_path / "again"
    code, report, said = reproduce(capsys, pictures / name, "--out", str(again))
    assert (code, report["result"], report["levels"]) == (0, "identical", 0)
    assert report["same_file"] is True
    assert again.read_bytes() == (pictures / name).read_bytes()
    assert "identical, byte for byte" in said
    assert report["model"].startswith("fashion-32@")


@pytest.mark.parametrize(
    "asked",
    [
        {"class": "7:0.7,9:0.3", "seed": 1},
        {"class": 7, "seed": 1, "n": 3, "stage": 2},
        {"class": 7, "seeds": "4,1-2,9", "format": "webp"},
        {"class": "7:0.7,9:0.3", "seeds": "5,3", "stage": 1, "format": "jpeg"},
        {"class": 7, "z": [0.25] * 64, "truncation_psi": 0.5},
    ],
    ids=str,
)
def test_mixtures_stages_seeds_and_latents_are_made_again(
    capsys: Any, server_url: str, tmp_path: Path, asked: dict[str, Any]
) -> None:
    answer = httpx.post(f"{server_url}/generate", json=asked)
    assert answer.status_code == 200, answer.text
    (tmp_path / "picture").write_bytes(answer.content)
    for where in ((), ("--url", server_url)):
        code, report, said = reproduce(capsys, tmp_path / "picture", *where)
        assert (code, report and report["result"]) == (0, "identical"), said
        assert report["same_file"] is True


def test_animation_between_classes_is_identical(
    capsys: Any, server_url: str, tmp_path: Path
) -> None:
    asked = {"class": ["7", "8:0.5,9:0.5"], "seed": [1, 2], "frames": 4}
    answer = httpx.post(f"{server_url}/interpolate", json=asked)
    assert answer.status_code == 200, answer.text
    (tmp_path / "path.webp").write_bytes(answer.content)
    code, report, _ = reproduce(capsys, tmp_path / "path.webp")
    assert (code, report["result"], report["same_file"]) == (0, "identical", True)


def with_pixels(picture: Path, pixels: np.ndarray, to: Path) -> Path:
    """Write other pixels that tell the same of themselves."""
    to.write_bytes(encode(pixels, "png", read_parameters(picture.read_bytes())))
    return to


@pytest.mark.parametrize("levels", [1, 9])
def test_difference_is_told_in_levels(
    capsys: Any, pictures: Path, tmp_path: Path, levels: int
) -> None:
    pixels = decode_png((pictures / "one.png").read_bytes()).copy()
    pixels[5, 7, 1] += levels if pixels[5, 7, 1] < 128 else -levels
    edited = with_pixels(pictures / "one.png", pixels, tmp_path / "edited.png")
    code, report, said = reproduce(capsys, edited, "--out", str(tmp_path / "again.png"))
    assert (code, report["result"], report["levels"]) == (1, "differs", levels)
    assert report["different_share"] == pytest.approx(1 / 1024, abs=1e-6)
    assert report["same_file"] is False
    assert f"differs by {levels} levels" in said
    assert (tmp_path / "again.png").read_bytes() == (pictures / "one.png").read_bytes()


def test_another_precision_differs(capsys: Any, pictures: Path) -> None:
    code, report, _ = reproduce(capsys, pictures / "grid.png", "--precision", "fp16")
    assert (code, report["result"]) == (1, "differs")
    assert 1 <= report["levels"] <= 16


def test_recompressed_file_of_the_same_pixels_is_identical(
    capsys: Any, pictures: Path, tmp_path: Path
) -> None:
    data = (pictures / "one.png").read_bytes()
    image = Image.open(io.BytesIO(data))
    image.load()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("cat-serve", image.info["cat-serve"])
    image.save(tmp_path / "small.png", optimize=True, pnginfo=text)
    code, report, said = reproduce(capsys, tmp_path / "small.png")
    assert (code, report["result"], report["same_file"]) == (0, "identical", False)
    assert "pixel for pixel" in said


def test_scaled_picture_differs_in_size(capsys: Any, pictures: Path, tmp_path: Path) -> None:
    pixels = decode_png((pictures / "one.png").read_bytes())[::2, ::2]
    scaled = with_pixels(pictures / "one.png", pixels, tmp_path / "scaled.png")
    code, report, said = reproduce(capsys, scaled)
    assert (code, report["result"], report["levels"]) == (1, "differs", None)
    assert "size" in said


def retold(picture: Path, to: Path, **changes: Any) -> Path:
    """Write the same pixels that tell something else of themselves; None takes a word away."""
    data = picture.read_bytes()
    told = {k: v for k, v in {**read_parameters(data), **changes}.items() if v is not None}
    to.write_bytes(encode(decode_png(data), "png", told))
    return to


@pytest.mark.parametrize(
    "change", [{"version": "0123456789ab"}, {"model": "other"}, {"model": "../fashion-32"}]
)
def test_another_version_is_told_apart(
    capsys: Any, pictures: Path, tmp_path: Path, change: dict[str, str]
) -> None:
    other = retold(pictures / "one.png", tmp_path / "other.png", **change)
    out = tmp_path / "again.png"
    code, report, said = reproduce(capsys, other, "--out", str(out))
    assert (code, report["result"]) == (2, "another_version")
    assert next(iter(change.values())) in said
    assert not out.exists()


def test_older_version_beside_a_newer_one_is_found(
    capsys: Any, pictures: Path, tmp_path: Path, shipped: Any
) -> None:
    models = tmp_path / "models" / "fashion-32"
    shutil.copytree(shipped.folder, models / "1")
    shutil.copytree(shipped.folder, models / "2")
    manifest = models / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"t-shirt"', '"shirt with short arms"'))
    code, report, _ = reproduce(
        capsys, pictures / "one.png", "--model-repository", str(tmp_path / "models")
    )
    assert (code, report["result"]) == (0, "identical")


def test_version_is_never_looked_for_outside_the_repository(shipped: Any) -> None:
    repository = find_repository()
    assert find_version(repository, "fashion-32", shipped.version) is not None
    for name in ("../model_repository/fashion-32", "./fashion-32", "..", "", "fashion-32/"):
        assert find_version(repository, name, shipped.version) is None


def huge_png() -> bytes:
    """Return a PNG of 60,000 x 60,000 px that holds no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # fmt: skip

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "cannot be read"),
        (b"", "not a PNG"),
        (b"hello", "not a PNG"),
        (huge_png(), "not a PNG"),
        (encode(np.zeros((8, 8, 3), np.uint8), "png"), "does not say how it was made"),
        (encode(np.zeros((8, 8, 3), np.uint8), "png", {"model": 1}), "which model"),
    ],
)
def test_file_that_says_nothing_is_a_clear_error(
    capsys: Any, tmp_path: Path, content: bytes | None, word: str
) -> None:
    path = tmp_path / "file.png"
    if content is not None:
        path.write_bytes(content)
    code, report, said = reproduce(capsys, path)
    assert (code, report) == (2, None)
    assert word in said
    assert said.startswith("error: ")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": None}, "neither seed nor z"),
        ({"seed": -1}, "seed"),
        ({"seed": "many"}, "seed"),
        ({"class": 99}, "no class 99"),
        ({"class": None}, "class is missing"),
        ({"n": 10**6}, "n is 1000000"),
        ({"truncation_psi": 7}, "truncation_psi"),
        ({"steps": 20}, "steps"),
    ],
    ids=str,
)
def test_picture_that_says_what_cannot_be_is_a_clear_error(
    capsys: Any, pictures: Path, tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    code, report, said = reproduce(
        capsys, retold(pictures / "one.png", tmp_path / "odd.png", **change)
    )
    assert (code, report) == (2, None)
    assert word in said


@pytest.fixture(scope="module")
def server_url(shipped_url: str) -> str:
    return shipped_url


@pytest.fixture(scope="module")
def animations(server_url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Animations as a server answers them."""
    folder = tmp_path_factory.mktemp("animations")
    body = {"class": 7, "seed": [1, 2], "frames": 5, "loop": True, "truncation_psi": 0.7}
    for suffix in ("webp", "gif", "zip"):
        answer = httpx.post(f"{server_url}/interpolate", json={**body, "format": suffix})
        assert answer.status_code == 200, answer.text
        (folder / f"path.{suffix}").write_bytes(answer.content)
    with zipfile.ZipFile(folder / "path.zip") as archive:
        (folder / "frame.png").write_bytes(archive.read("frame-0002.png"))
    return folder


@pytest.mark.parametrize("name", ["path.webp", "path.gif", "frame.png"])
def test_animation_is_identical(capsys: Any, animations: Path, name: str, tmp_path: Path) -> None:
    again = tmp_path / "again"
    code, report, _ = reproduce(capsys, animations / name, "--out", str(again))
    assert (code, report["result"], report["same_file"]) == (0, "identical", True)
    assert again.read_bytes() == (animations / name).read_bytes()


@pytest.mark.parametrize("url", [(), ("--url", "http://127.0.0.1:9")])
def test_still_that_became_a_gif_is_a_clear_error(
    capsys: Any, animations: Path, pictures: Path, tmp_path: Path, url: tuple[str, ...]
) -> None:
    told = f"cat-serve: {json.dumps(read_parameters((pictures / 'one.png').read_bytes()))}"
    with Image.open(pictures / "one.png") as image:
        image.convert("P").save(tmp_path / "one.gif", comment=told.encode())
    code, report, said = reproduce(capsys, tmp_path / "one.gif", *url)
    assert (code, report) == (2, None)
    assert "GIF" in said


@pytest.mark.parametrize("frame", [5, -1, "last", True, 10**9])
def test_frame_that_is_none_is_a_clear_error(
    capsys: Any, animations: Path, tmp_path: Path, frame: Any
) -> None:
    odd = retold(animations / "frame.png", tmp_path / "odd.png", frame=frame)
    code, report, said = reproduce(capsys, odd)
    assert (code, report) == (2, None)
    assert "frame" in said


@pytest.mark.parametrize("name", ["path.webp", "path.gif", "frame.png"])
def test_server_makes_the_animation(
    capsys: Any, animations: Path, server_url: str, name: str, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    where = ("--url", server_url, "--out", str(again))
    code, report, said = reproduce(capsys, animations / name, *where)
    assert (code, report and report["result"]) == (0, "identical"), said
    assert (report["same_file"], report["different_frames"]) == (True, [])
    assert again.read_bytes() == (animations / name).read_bytes()


def with_frames(animation: Path, to: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    """Write the same animation with other frames that tells the same of itself."""
    frames = change(read_picture(animation).pixels.copy())
    told = read_parameters(animation.read_bytes())
    to.write_bytes(encode_animation(frames, "webp", told["fps"], told["loop"], told))
    return to


def shifted(frames: np.ndarray) -> np.ndarray:
    for frame in (1, 3):
        frames[frame, 4, 5] ^= 8
    return frames


@pytest.mark.parametrize("by_server", [False, True])
def test_frames_that_differ_are_named(
    capsys: Any, animations: Path, server_url: str, tmp_path: Path, by_server: bool
) -> None:
    where = ("--url", server_url) if by_server else ()
    edited = with_frames(animations / "path.webp", tmp_path / "edited.webp", shifted)
    code, report, said = reproduce(capsys, edited, *where)
    assert (code, report["result"], report["levels"]) == (1, "differs", 8)
    assert (report["frames"], report["different_frames"]) == (5, [1, 3])
    assert "in 2 of 5 frames, first in frame 1" in said
    cut = with_frames(animations / "path.webp", tmp_path / "cut.webp", lambda frames: frames[:-1])
    code, report, said = reproduce(capsys, cut, *where)
    assert (code, report["result"], report["levels"]) == (1, "differs", None)
    assert "it has 4 frames, not 5" in said


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"frame": 5}, "frame 5 of 5"),
        ({"class": None}, "class"),
        ({"seed": 1.5}, "seed 1.5 is not an integer"),
        ({"frames": 10**6}, "frames"),
        ({"steps": 20}, "steps"),
    ],
    ids=str,
)
def test_server_is_told_what_cannot_be_in_clear_words(
    capsys: Any, animations: Path, server_url: str, tmp_path: Path, change: Any, word: str
) -> None:
    odd = retold(animations / "frame.png", tmp_path / "odd.png", **change)
    code, report, said = reproduce(capsys, odd, "--url", server_url)
    assert (code, report) == (2, None)
    assert said.startswith("error: ")
    assert word in said


@pytest.mark.parametrize("content", [None, b"", b"two words", b"\xff"])
def test_file_without_a_key_is_a_clear_error(
    capsys: Any, pictures: Path, tmp_path: Path, content: bytes | None
) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_bytes(content)
    where = ("--url", "http://127.0.0.1:9", "--api-key-file", str(key))
    code, report, said = reproduce(capsys, pictures / "one.png", *where)
    assert (code, report) == (2, None)
    assert said.startswith("error: --api-key-file")


def test_animation_of_too_many_pixels_is_not_decoded(
    capsys: Any, animations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cat_serve.reproduce.MAX_PIXELS", 5 * 32 * 32 - 1)
    code, report, said = reproduce(capsys, animations / "path.webp")
    assert (code, report) == (2, None)
    assert "5 frames of 32 x 32 px" in said


def test_server_makes_the_picture(
    capsys: Any, pictures: Path, server_url: str, tmp_path: Path
) -> None:
    for name in ("one.png", "grid.webp"):
        code, report, _ = reproduce(capsys, pictures / name, "--url", server_url)
        assert (code, report["result"], report["same_file"]) == (0, "identical", True)
    other = retold(pictures / "one.png", tmp_path / "other.png", version="0123456789ab")
    code, report, _ = reproduce(capsys, other, "--url", server_url)
    assert (code, report["result"]) == (2, "another_version")


def test_server_that_is_not_there_is_a_clear_error(capsys: Any, pictures: Path) -> None:
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    code, report, said = reproduce(
        capsys, pictures / "one.png", "--url", f"http://127.0.0.1:{port}"
    )
    assert (code, report) == (1, None)
    assert said.startswith("error: ")
