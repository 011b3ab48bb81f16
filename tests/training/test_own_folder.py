"""From a folder of images to a served one, by the commands that docs/own-data.md gives, in its order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from cat_serve.model.checkpoint import load_checkpoint

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "own-data.md"
SMALL_NETWORKS = ["--width", "24", "--batch-size", "8", "--total-nimg", "16", "--threads", "1"]
QUICK = {  # what makes the guide's commands quick; nothing else about them changes
    "training.train_vae": ["--widths", "8", "8", "8", "--batch-size", "8", "--total-nimg", "8", "--no-bf16", "--workers", "0"],
    "training.prepare": ["--workers", "0"],
    "training.train": SMALL_NETWORKS,
    "export.onnx": ["--precision", "fp32", "--studio-precision", "none", "--parity-classes", "2", "--max-batch", "4"],
}  # fmt: skip
Report = tuple[list[str], dict[str, object], str]  # a command, its JSON, what it said
SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, tuple[int, ...], str], None]] = {
    "heron": lambda draw, box, colour: draw.ellipse(box, fill=colour),
    "gull": lambda draw, box, colour: draw.rectangle(box, fill=colour),
    "owl": lambda draw, box, colour: draw.regular_polygon((*box[:2], 12), 3, fill=colour),
    "wren": lambda draw, box, colour: draw.line(box, fill=colour, width=6),
}


def guide_commands() -> list[list[str]]:
    """Return the words of every command in the guide's shell blocks."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)
    scripts = [text.replace("\\\n", "") for language, text in fences if not language]
    return [shlex.split(line) for script in scripts for line in script.splitlines()]


def draw_photos(root: Path, classes: list[str]) -> None:
    """Draw a few shapes of each class, one of them in a sub-folder."""
    for number, name in enumerate(classes):
        for each in range(5):
            random = np.random.RandomState(10 * number + each)
            image = Image.new("RGB", (90, 70), tuple(random.randint(150, 256, 3).tolist()))
            left, top = random.randint(10, 30, 2).tolist()
            SHAPES[name](ImageDraw.Draw(image), (left, top, left + 30, top + 30), "navy")
            path = root / name / ("more" if each == 4 else "") / f"{each}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the guide's `photos` and `more-photos`, which commands run in."""
    draw_photos(tmp_path / "photos", ["heron", "gull", "owl"])
    draw_photos(tmp_path / "more-photos", ["heron", "gull", "owl", "wren"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(words: list[str]) -> int:
    """Run a command of the guide in this process, `python -m` or `cat-serve`."""
    if words[0] == "cat-serve":
        from cat_serve.cli import main

        return main(words[1:])
    assert words[:2] == ["python", "-m"]
    main = import_module(words[2]).main
    return int(main([*words[3:], *QUICK[words[2]]]))


def ask_server(serve: list[str], curl: list[str], folder: Path) -> Image.Image:
    """Start the guide's server on a free port, make the guide's request, end the server."""
    program = [sys.executable, "-m", "cat_serve", *serve[1:], "--port", "0", "--threads", "1"]
    address = urlsplit(curl[curl.index("POST") + 1])
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            program, stdout=log, stderr=log, env=os.environ | {"COLUMNS": "200"}
        )
    try:
        deadline = time.monotonic() + 120
        while not (
            found := re.search(r"http://127\.0\.0\.1:\d+", (folder / "server.log").read_text())
        ):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        url = f"{found[0]}{address.path}?{address.query}"
        while (answer := httpx.post(url, timeout=60)).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        server.terminate()
        server.wait(60)
    assert answer.status_code == 200, answer.text
    picture = folder / curl[curl.index("--output") + 1]
    picture.write_bytes(answer.content)
    return Image.open(picture)


@pytest.mark.slow
def test_the_guide_leads_from_a_folder_to_a_served_image(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install, *commands = guide_commands()
    assert install[:2] == ["pip", "install"]
    reports: list[Report] = []
    serve: list[str] = []
    for words in commands:
        if words[:2] == ["cat-serve", "serve"]:
            serve = words  # until somebody asks
        elif words[0] == "curl":
            assert ask_server(serve, words, place).size == (64, 64)
        else:
            assert run(words) == 0, (words, capsys.readouterr().err)
            printed, said = capsys.readouterr()
            report = json.loads(printed.splitlines()[-1]) if words[0] == "python" else {}
            reports.append((words, report, said))
    check_what_was_made(place, reports)


def check_what_was_made(place: Path, reports: list[Report]) -> None:
    """Check what the commands left and said."""
    dry, encoded = (
        report
        for words, report, _ in reports
        if words[2] == "training.prepare" and "photos" in words
    )
    assert (dry["images"], encoded["count"]) == (15, 15)
    first = load_checkpoint(place / "runs/birds/birds-64.safetensors")
    assert first.class_names == ("gull", "heron", "owl")
    assert str(place) not in json.dumps(first.training)  # where they lie is nobody's business
    second = load_checkpoint(place / "runs/more-birds/more-birds-64.safetensors")
    assert second.class_names == ("gull", "heron", "owl", "wren")
    said = " ".join(text for words, _, text in reports if "--from" in words)
    assert "3 classes are known by their names, 1 are new: wren" in said
    assert "discriminator from beside it" in said
    assert second.training["initial"]["name"] == "birds-64"
    assert Image.open(place / "herons.png").width > 64
    assert {path.name for path in (place / "my-models").iterdir()} >= {"birds-64", "more-birds-64"}
    assert not torch.equal(*(c.generator.mapping.class_embedding[:3] for c in (first, second)))


def test_every_command_of_the_guide_is_one_that_the_slow_test_runs() -> None:
    """And each parses, with what the slow test adds to it."""
    commands = guide_commands()
    assert len(commands) == 12
    for words in commands:
        if words[0] == "python":
            parser = import_module(words[2]).build_parser()
            parser.parse_args([*words[3:], *QUICK[words[2]]])
    assert {words[0] for words in commands} == {"pip", "python", "cat-serve", "curl"}
