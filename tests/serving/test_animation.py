"""Animated files: what they show, how long, how often, and what they say of themselves."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cat_serve.animation import ANIMATION_FORMATS, durations_ms, encode_animation
from cat_serve.images import decode_png, read_parameters

PARAMETERS = {"model": "toy", "interpolation": {"class": [1, 2], "name": "sea lion é"}}


def noise(count: int = 6, levels: int = 256, channels: int = 3) -> np.ndarray:
    """Return frames with up to levels ** channels colours."""
    values = np.random.default_rng(0).integers(0, levels, (count, 24, 20, channels), dtype=np.uint8)
    return np.repeat(values, 3, axis=-1) if channels == 1 else values


def opened(data: bytes) -> tuple[np.ndarray, list[int], Any]:
    """Return frames, their durations and the times they are played."""
    with Image.open(io.BytesIO(data)) as image:
        frames, durations = [], []
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
        return np.stack(frames), durations, image.info.get("loop")


def test_webp_is_lossless() -> None:
    frames = noise()
    shown, _, _ = opened(encode_animation(frames, "webp", 16, True, PARAMETERS))
    assert np.array_equal(shown, frames)


@pytest.mark.parametrize("frames", [noise(channels=1), noise(levels=6)], ids=["grey", "216"])
def test_gif_is_exact_with_256_colours_a_frame(frames: np.ndarray) -> None:
    shown, _, _ = opened(encode_animation(frames, "gif", 16, True, PARAMETERS))
    assert np.array_equal(shown, frames)


def test_gif_of_more_colours_is_near() -> None:
    ramp = np.linspace(0, 255, 40, dtype=np.uint8)
    frame = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, :], np.uint8(128)), axis=-1)
    shown, _, _ = opened(encode_animation(frame[None], "gif", 16, True, PARAMETERS))
    assert len(np.unique(frame.reshape(-1, 3), axis=0)) > 256
    assert np.abs(shown[0].astype(int) - frame).mean() < 8


def test_zip_has_a_numbered_png_for_every_frame() -> None:
    frames = noise(12)
    data = encode_animation(frames, "zip", 16, True, PARAMETERS)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"frame-{index:04d}.png" for index in range(12)]
        files = [archive.read(name) for name in archive.namelist()]
    assert np.array_equal(np.stack([decode_png(data) for data in files]), frames)
    assert [read_parameters(data) for data in files] == [
        {**PARAMETERS, "frame": index} for index in range(12)
    ]


@pytest.mark.parametrize("animation_format", ["webp", "gif"])
def test_file_says_how_it_was_made(animation_format: Any) -> None:
    data = encode_animation(noise(), animation_format, 16, True, PARAMETERS)
    assert read_parameters(data) == PARAMETERS
    much = {"seeds": list(range(2000))}  # more than one block of a GIF's comment
    assert read_parameters(encode_animation(noise(), animation_format, 16, True, much)) == much


@pytest.mark.parametrize(("loop", "webp", "gif"), [(True, 0, 0), (False, 1, None)])
def test_loop_is_played_for_ever_and_anything_else_once(loop: bool, webp: Any, gif: Any) -> None:
    assert opened(encode_animation(noise(), "webp", 16, loop, {}))[2] == webp
    assert opened(encode_animation(noise(), "gif", 16, loop, {}))[2] == gif


@pytest.mark.parametrize(("animation_format", "tick_ms"), [("webp", 1), ("gif", 10)])
def test_frames_last_as_long_as_the_rate_says(animation_format: Any, tick_ms: int) -> None:
    _, durations, _ = opened(encode_animation(noise(), animation_format, 24, True, {}))
    assert durations == durations_ms(6, 24, tick_ms)
    assert abs(sum(durations) - 250) <= tick_ms / 2


@pytest.mark.parametrize("fps", [1, 7, 24, 30, 50])
@pytest.mark.parametrize("tick_ms", [1, 10])
def test_rounding_of_durations_never_adds_up(fps: int, tick_ms: int) -> None:
    durations = durations_ms(200, fps, tick_ms)
    ends = np.cumsum(durations)
    assert np.abs(ends - 1000 * np.arange(1, 201) / fps).max() <= tick_ms / 2
    assert min(durations) >= tick_ms
    assert all(duration % tick_ms == 0 for duration in durations)


@pytest.mark.parametrize("animation_format", ANIMATION_FORMATS)
def test_same_frames_give_the_same_bytes(animation_format: Any) -> None:
    made = [encode_animation(noise(), animation_format, 16, True, PARAMETERS) for _ in range(2)]
    assert made[0] == made[1]
