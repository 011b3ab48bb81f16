"""Pictures from anybody: what `cat-serve reproduce` reads of them, and what it refuses, in bounded time and memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cat_serve.animation import AnimationFormat, encode_animation
from cat_serve.errors import InvalidInput
from cat_serve.images import METADATA_KEY, Format, encode, read_parameters
from cat_serve.reproduce import compare, read_picture
from tests.robustness.tried import PROPERTY, TRIED

PARAMETERS = {"model": "toy", "version": "0123456789ab", "class": 1, "seed": 3, "n": 1}
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
BOMB_MIB = 400
RASTER_BYTES = 64 << 20

STILLS: tuple[Format, ...] = ("png", "jpeg", "webp")
ANIMATIONS: tuple[AnimationFormat, ...] = ("webp", "gif")
PICTURES = {
    **{name: encode(PIXELS[0], name, PARAMETERS) for name in STILLS},
    **{f"animated {n}": encode_animation(PIXELS, n, 10, True, PARAMETERS) for n in ANIMATIONS},
}

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=15,
)  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures") / "picture"


def read(file: Path, data: bytes) -> Any:
    """Read a picture as `cat-serve reproduce` does; return it, or the project's own error."""
    TRIED.add("parsers")
    file.write_bytes(data)
    try:
        picture = read_picture(file)
        for fact in (lambda: picture.request, lambda: picture.frame, lambda: picture.label):
            fact()
        compare(picture, data)
    except InvalidInput as error:
        return error
    return picture


@PROPERTY
@given(st.sampled_from(STILLS), st.dictionaries(st.text(max_size=10), JSON_VALUES, max_size=6))
def test_parameters_are_read_as_they_were_written(name: Format, parameters: dict[str, Any]) -> None:
    TRIED.add("parsers")
    assert read_parameters(encode(PIXELS[0], name, parameters)) == parameters


@PROPERTY
@given(st.sampled_from(sorted(PICTURES)), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=8))  # fmt: skip
def test_picture_with_wrong_bytes_is_read_or_refused(
    file: Path, name: str, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(PICTURES[name])
    for place, value in changes:
        data[place % len(data)] ^= value
    read(file, bytes(data))


@PROPERTY
@given(st.sampled_from(sorted(PICTURES)), st.integers(0, 4000), st.binary(max_size=30))
@example("png", 0, b"")
@example("gif89", 6, b"")
def test_picture_that_is_cut_off_is_refused(file: Path, name: str, cut: int, end: bytes) -> None:
    data = PICTURES.get(name, PICTURES["animated gif"])
    error = read(file, data[: min(cut, len(data) // 2)] + end)
    assert isinstance(error, InvalidInput)


@PROPERTY
@given(st.binary(max_size=300) | st.builds(lambda a, b: a + b, st.sampled_from((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\x20\0\0\0WEBPVP8L", b"GIF89a")), st.binary(max_size=200)))  # fmt: skip
def test_bytes_that_are_no_picture_are_refused(file: Path, data: bytes) -> None:
    assert isinstance(read(file, data), InvalidInput)


@PROPERTY
@given(st.sampled_from(STILLS), st.dictionaries(st.sampled_from((*PARAMETERS, "frame", "frames", "z", "seeds")), JSON_VALUES))  # fmt: skip
@example("png", {"model": "m", "version": "v", "seed": 1, "frame": "x"})
def test_picture_that_says_anything_of_itself_is_read_or_refused(
    file: Path, name: Format, parameters: dict[str, Any]
) -> None:
    read(file, encode(PIXELS[0], name, {**PARAMETERS, **parameters}))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width: int = 1, height: int = 1, raster: bytes = b"\0\0\0\0") -> bytes:
    """Return a PNG of RGB with these chunks before its pixels, which may be far fewer than it says."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(raster))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + pixels + chunk(b"IEND", b"")  # fmt: skip


def text(data: bytes, compressed: bool = False) -> bytes:
    content = zlib.compress(data, 9) if compressed else data
    return chunk(b"iTXt", METADATA_KEY.encode() + bytes((0, compressed, 0, 0, 0)) + content)


def jpeg_that_says(width: int, height: int) -> bytes:
    data = bytearray(PICTURES["jpeg"])
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_that_says(width: int, height: int) -> bytes:
    data = bytearray(PICTURES["animated gif"])
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


def gif_of_many_frames() -> bytes:
    data = PICTURES["animated gif"]
    stream = io.BytesIO()
    frames = [Image.new("P", (1, 1), color=i % 2) for i in range(3000)]
    frames[0].save(stream, format="gif", save_all=True, append_images=frames[1:], comment=data[:0])
    return stream.getvalue()


BOMBS: dict[str, Callable[[], bytes]] = {
    "png of 400 megapixels": lambda: png(width=20_000, height=20_000),
    "png of 144 megapixels": lambda: png(width=12_000, height=12_000, raster=bytes(RASTER_BYTES)),
    "png of 2^62 pixels": lambda: png(width=2**31 - 1, height=2**31 - 1),
    "png of no pixels": lambda: png(width=0, height=0),
    "jpeg of 4 gigapixels": lambda: jpeg_that_says(65_500, 65_500),
    "gif of 4 gigapixels": lambda: gif_that_says(65_535, 65_535),
    "gif of 3,000 frames": gif_of_many_frames,
    "text of 512 MB": lambda: png(text(bytes(512 << 20), compressed=True)),
    "text of 50 MB": lambda: png(text(b"a" * (50 << 20))),
    "100,000 texts": lambda: png(text(b"{}") * 100_000),
    "deep lists": lambda: png(text(b"[" * 200_000)),
    "deep objects": lambda: png(text(b'{"a":' * 100_000)),
    "number of 100,000 digits": lambda: png(text(b'{"seed":' + b"9" * 100_000 + b"}")),
    "text that is no utf-8": lambda: png(text(b"\xff\xfe\xfd")),
    "text of another kind": lambda: png(text(b"[1, 2]")),
    "profile of 512 MB": lambda: png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(512 << 20), 9))),
    "chunk that is longer than the file": lambda: png(struct.pack(">I", 2**31 - 1) + b"iTXt"),
}

READ_ALL = """
import sys
from pathlib import Path
from cat_serve.errors import InvalidInput
from cat_serve.reproduce import read_picture
for name in sys.argv[1:]:
    try:
        read_picture(Path(name))
        print("read", name)
    except InvalidInput as error:
        print("refused", error.message)
    # not ru_maxrss, which counts what the parent held before
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) // 1024, "MiB")
"""


@pytest.mark.slow
def test_bombs_are_refused_in_little_memory(tmp_path: Path, project_root: Path) -> None:
    names = []
    for number, (_, make) in enumerate(BOMBS.items()):
        TRIED.add("parsers")
        names.append(str(tmp_path / str(number)))
        Path(names[-1]).write_bytes(make())
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", READ_ALL, *names],
        cwd=project_root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    told = dict(zip(BOMBS, zip(lines[::2], lines[1::2], strict=True), strict=True))
    assert all(said.startswith("refused") for said, _ in told.values()), told
    assert int(lines[-1].split()[0]) < BOMB_MIB, told


@pytest.mark.parametrize("name", ["png of 400 megapixels", "png of 2^62 pixels", "gif of 4 gigapixels", "deep lists"])  # fmt: skip
def test_bomb_is_refused(file: Path, name: str) -> None:
    error = read(file, BOMBS[name]())
    assert isinstance(error, InvalidInput)


def test_command_tells_a_hostile_file_in_one_line(file: Path, project_root: Path) -> None:
    TRIED.add("parsers")
    file.write_bytes(BOMBS["deep lists"]())
    done = subprocess.run(
        [sys.executable, "-m", "cat_serve", "reproduce", str(file)],
        cwd=project_root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert len(json.dumps(done.stderr)) < 1000
