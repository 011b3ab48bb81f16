"""Samples of `cat-serve generate`: the service's images, and runs that survive being interrupted."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cat_serve.backends.fake import FakeBackend
from cat_serve.classes import Classes
from cat_serve.cli import main
from cat_serve.contract import Output
from cat_serve.embedded import Embedded
from cat_serve.errors import BadOutput
from cat_serve.files import sha256_of
from cat_serve.manifest import Artefact
from cat_serve.samples import INDEX_NAME
from cat_serve.wanted import ServedModel
from tests.serving.generating import Generate, served
from tests.serving.processes import ROOT, ended

WAIT_S = 60.0


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
