"""`cat-serve generate`: the service's own bytes, and samples that survive being interrupted."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.classes import Classes
from cat_serve.cli import main
from cat_serve.cli.pictures import read_seeds
from cat_serve.cli.writing import bar_of_images
from cat_serve.contract import Output
from cat_serve.embedded import Embedded
from cat_serve.errors import BadOutput, InvalidInput
from cat_serve.files import sha256_of
from cat_serve.images import read_parameters
from cat_serve.latents import MAX_SEED
from cat_serve.manifest import GOLDEN_NAME, Artefact
from cat_serve.samples import INDEX_NAME
from cat_serve.wanted import ServedModel
from tests.serving.processes import ROOT, ended

Generate = Callable[..., dict[str, Any]]
WAIT_S = 60.0


@pytest.fixture(scope="module")
def server(shipped_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shipped_url) as client:
        yield client


@pytest.fixture
def generate(capsys: pytest.CaptureFixture[str]) -> Generate:
    """Run the command in this process; return what its last line says."""

    def run(*flags: str) -> dict[str, Any]:
        code = main(["generate", "--threads", "1", *flags])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        report: dict[str, Any] = json.loads(captured.out.splitlines()[-1])
        return report

    return run


def served(server: httpx.Client, **parameters: Any) -> bytes:
    answer = server.post("/generate", params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.content


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
    generate(*flags, "--out", str(tmp_path / "files"))
    zipped = server.post("/generate", params={**parameters, "response": "zip"})
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "files").iterdir()} == files


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


def test_samples_are_the_services_images_of_all_classes_in_turn(
    server: httpx.Client, generate: Generate, tmp_path: Path
) -> None:
    path = tmp_path / "samples.npz"
    flags = ["--n", "23", "--seed", "5", "--shard-size", "8", "--batch", "3"]
    report = generate(*flags, "--out", str(path))
    with np.load(path) as samples:
        images, labels = samples["arr_0"], samples["arr_1"]
    assert labels.tolist() == [i % 10 for i in range(23)]
    for i in (0, 7, 8, 9, 10, 22):
        expected = served(server, **{"class": i % 10}, seed=5 + i // 10, format="npy")
        file = tmp_path / "expected.npy"
        file.write_bytes(expected)
        assert np.array_equal(images[i], np.load(file))
    assert (report["images"], report["made"]) == (23, 23)


def test_samples_of_a_mixture_are_the_services(
    generate: Generate, server: httpx.Client, tmp_path: Path
) -> None:
    mixture = "9:0.3,7:0.7"
    flags = ["--class", mixture, "--batch", "2", "--shard-size", "2", "--seed", "4"]
    report = generate("--n", "3", *flags, "--out", str(tmp_path / "mixed.npz"))
    assert (report["images"], report["determinism"]) == (3, "bytes")
    with np.load(tmp_path / "mixed.npz") as samples:
        images, shares = samples["arr_0"], samples["arr_1"]
    assert shares.shape == (3, 10)
    np.testing.assert_array_equal(shares[:, [7, 9]], np.float32([[0.7, 0.3]] * 3))
    for place, seed in enumerate((4, 5, 6)):
        content = served(server, **{"class": mixture, "seed": seed, "format": "npy"})
        assert np.array_equal(images[place], np.load(io.BytesIO(content)))


def test_mixture_wants_a_model_with_a_studio(
    add_model: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from cat_serve.backends import BACKENDS

    add_model()
    monkeypatch.setitem(BACKENDS, "onnxruntime", BACKENDS["fake"])
    flags = ["--n", "2", "--class", "0:0.5,1:0.5", "--model-repository", str(repository)]
    assert main(["generate", *flags, "--out", str(tmp_path / "a.npz")]) == 2
    assert "Mixtures and stages of toy cannot be had here" in capsys.readouterr().err
    assert not (tmp_path / "a.npz").exists()


def test_samples_do_not_depend_on_pass_and_shard(generate: Generate, tmp_path: Path) -> None:
    for name, flags in {"a": ["--batch", "1"], "b": ["--batch", "5", "--shard-size", "4"]}.items():
        generate("--n", "11", "--class", "shirt", *flags, "--out", str(tmp_path / f"{name}.npz"))
    assert sha256_of(tmp_path / "a.npz") == sha256_of(tmp_path / "b.npz")


def shards(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir())}


BROKEN_OFF = ["--n", "100", "--shard-size", "5", "--batch", "5", "--threads", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of a run that was never broken off."""
    out = tmp_path_factory.mktemp("samples") / "whole"
    assert main(["generate", *BROKEN_OFF, "--out", str(out)]) == 0
    return out


def start(out: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CAT_SERVE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "cat_serve", "generate", *BROKEN_OFF, "--out", str(out)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_run_that_is_broken_off_goes_on_and_gives_the_same_bytes(
    whole: Path, tmp_path: Path, sign: signal.Signals, code: int, generate: Generate
) -> None:
    broken = tmp_path / "broken"
    process = start(broken)
    with ended(process):  # type: ignore[arg-type]
        ends_s = time.monotonic() + WAIT_S
        while len(list(broken.glob("0*.npz"))) < 2:
            assert time.monotonic() < ends_s
            assert process.poll() is None, "it was too quick to be broken off"
            time.sleep(0.005)
        process.send_signal(sign)
        _, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == code
    assert "Traceback" not in err
    finished = len(list(broken.glob("0*.npz")))
    assert 2 <= finished < 20
    assert generate(*BROKEN_OFF, "--out", str(broken))["made"] == 100 - 5 * finished
    assert shards(broken) == shards(whole)
    assert len(shards(whole)) == 20 + 1


def test_disk_that_is_full_is_told_and_the_run_goes_on_later(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from cat_serve import samples

    real, written = samples.np.savez, []

    def savez(*arguments: Any) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(real(*arguments))

    out = tmp_path / "shards"
    flags = ["--n", "12", "--shard-size", "4", "--out", str(out)]
    with monkeypatch.context() as full:
        full.setattr(samples.np, "savez", savez)
        assert main(["generate", "--threads", "1", *flags]) == 2
    assert "error: No space left on device.\n  hint: make room" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["000000.npz", "000001.npz", INDEX_NAME]
    assert generate(*flags)["made"] == 4


def test_progress_is_for_a_terminal_or_for_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with bar_of_images(1000, "model") as bar:
        for _ in range(1000):
            bar.update()
    said = capsys.readouterr().err
    assert said.count("\r") <= 3  # begin and end; a log keeps every line
    assert "1000/1000" in said
    assert said.isascii()


def test_changed_request_is_refused(
    generate: Generate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--n", "6", "--shard-size", "4", "--out", str(tmp_path / "shards")]
    assert generate(*flags)["made"] == 6
    assert generate(*flags, "--batch", "3")["made"] == 0  # its bytes do not depend on that
    before = shards(tmp_path / "shards")
    assert main(["generate", *flags, "--truncation-psi", "0.5"]) == 2
    assert "truncation_psi 1.0, not 0.5" in capsys.readouterr().err
    assert shards(tmp_path / "shards") == before


def test_size_of_a_pass_is_kept_where_bytes_may_depend_on_it(
    generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cat_serve.backends import onnxruntime

    real = onnxruntime.open_backend

    def less_sure(artefact: Artefact, options: Any) -> Any:
        backend = real(artefact, options)
        backend.determinism = "latent"
        return backend

    monkeypatch.setattr(onnxruntime, "open_backend", less_sure)
    flags = ["--n", "3", "--batch", "2", "--out", str(tmp_path / "shards")]
    assert generate(*flags)["determinism"] == "latent"
    assert json.loads((tmp_path / "shards" / INDEX_NAME).read_text())["batch"] == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--out", "a.png"], "class is missing"),
        (["--class", "7", "--out", "a.gif"], "says no format"),
        (["--class", "sneeker", "--out", "a.png"], "did you mean 'sneaker'"),
        (["--class", "7", "--seeds", "9-3", "--out", "a.png"], "ends before it begins"),
        (["--class", "7", "--seeds", "4294967295-4294967296", "--out", "a.png"], "is above"),
        (["--class", "7", "--stage", "9", "--out", "a.png"], "3 stages"),
        (["--class", "7:0.7,9:0.7", "--out", "a.png"], "sum to 1.4"),
        (["--n", "5", "--class", "7:0.7,9:0.7", "--out", "a.npz"], "sum to 1.4"),
        (["--class", "7", "--truncation-psi", "2", "--out", "a.png"], "0 to 1"),
        (["--class", "7", "--truncation-psi", "nan", "--out", "a.png"], "0 to 1"),
        (["--n", "5", "--out", "a.png"], "makes samples"),
        (["--n", "5", "--stage", "1", "--out", "a.npz"], "makes samples"),
        (["--n", "5", "--format", "png", "--out", "a.npz"], "--format is for pictures"),
        (["--class", "7", "--seed", "5", "--out", "a.png"], "--seeds 5 makes the picture"),
        (["--class", "7", "--shard-size", "5", "--out", "a/"], "--shard-size is for samples"),
        (["--class", "7", "--format", "png", "--out", "a.jpg"], "a.jpg is a jpeg"),
        (["--n", "0", "--out", "a.npz"], "n is 0"),
        (["--n", "5", "--class", "zebra", "--out", "a.npz"], "no class 'zebra'"),
        (["--n", "5", "--batch", "0", "--out", "a.npz"], "CAT_SERVE_MAX_BATCH"),
        (["--n", "5", "--model", "other", "--out", "a.npz"], "models here: fashion-32"),
        (["--n", "5", "--out", "/dev/null/a.npz"], "/dev/null is no folder"),
        (["--class", "7", "--seeds", "0-9", "--out", "/dev/null/a.png"], "/dev/null is no folder"),
        (["--n", "5", "--shard-size", "0", "--out", "a.npz"], "shard_size is 0"),
    ],
)
def test_wrong_usage_is_told_and_leaves_no_file(
    flags: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["generate", *flags]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_backend_of_other_processes_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CAT_SERVE_TRITON_URL", "127.0.0.1:1")
    flags = ["--class", "7", "--out", str(tmp_path / "a.png"), "--backend", "triton"]
    assert main(["generate", *flags]) == 2
    assert "computes in other processes" in capsys.readouterr().err


def test_setting_of_the_environment_counts(
    generate: Generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("CAT_SERVE_PRECISION", "fp16")
    flags = ["--class", "7", "--seeds", "1", "--out", str(tmp_path / "a.png")]
    assert generate(*flags)["precision"] == "fp16"
    assert generate(*flags, "--precision", "fp32")["precision"] == "fp32"


def test_broken_artefact_is_a_failed_check(
    add_model: Any, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = add_model()
    (artefact.folder / GOLDEN_NAME).write_bytes(b"other")
    flags = ["--model-repository", str(repository), "--class", "1"]
    assert main(["generate", *flags, "--out", str(tmp_path / "a.png")]) == 1
    assert "golden.png of model 'toy' is not the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "spoil",
    [
        lambda answer: Output(answer.images, answer.ok & (np.arange(len(answer.ok)) != 1)),
        lambda answer: Output(answer.images * (np.arange(len(answer.ok)) != 1)[:, None, None, None].astype(np.uint8), answer.ok),
    ],
    ids=["flagged", "of one colour"],
)  # fmt: skip
def test_sample_that_must_not_be_shown_is_named(add_model: Any, spoil: Any) -> None:
    artefact = add_model()
    names = artefact.manifest.class_names
    model = ServedModel(artefact, Classes("toy", names))
    engine = Embedded(model, FakeBackend(artefact, after=spoil), batch=2)
    with pytest.raises(BadOutput, match=r"class_id 3; .*seed 8") as caught:
        engine.images([{1: 1.0}, {3: 1.0}, {2: 1.0}], [7, 8, 9], 1.0)
    assert caught.value.details["seeds"] == [8]


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
