"""Two forms of one model, compared: files and a server that is really there."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import uvicorn
from onnx import numpy_helper

from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
from cat_serve.contract import Batch, Output
from cat_serve.errors import BackendError, BackendUnavailable, InvalidInput, UnknownModel
from cat_serve.latents import latent_from_seed
from cat_serve.manifest import Manifest, load_artefact, record
from cat_serve.phase import Phase
from cat_serve.settings import Settings
from cat_serve.web.app import create_app
from cat_serve.web.server import bind
from export.comparison import VerifyOptions, verify
from export.forms import open_form
from export.forms.http import consecutive
from export.probes import Seeded
from export.verify import main

WAIT_S = 20.0
QUICK = ["--parity-classes", "2", "--max-batch", "3"]

Captured = pytest.CaptureFixture[str]


def last_line(captured: Captured) -> dict[str, Any]:
    return json.loads(captured.readouterr().out.splitlines()[-1])


@contextmanager
def serving(folder: Path, engine: Any = None) -> Iterator[str]:
    """Serve the repository of a version folder on a free port; yield the address."""
    settings = Settings(model_repository=folder.parent.parent, threads=1, max_batch=3)
    app = create_app(settings, open_engine=engine)
    with bind("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + WAIT_S
            while app.state.service.phase is not Phase.READY and time.monotonic() < deadline:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(WAIT_S)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def address(version_folder: Path) -> Iterator[str]:
    with serving(version_folder) as found:
        yield found


@pytest.fixture(scope="module")
def broken_folder(version_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported model with one weight matrix of model.onnx changed, and a manifest that fits it."""
    folder = tmp_path_factory.mktemp("broken") / "tiny-random" / "1"
    shutil.copytree(version_folder, folder)
    model = onnx.load(folder / "model.onnx")
    weights = [t for t in model.graph.initializer if len(t.dims) >= 2 and t.data_type == 1]
    largest = max(weights, key=lambda tensor: int(np.prod(tensor.dims)))
    changed = numpy_helper.to_array(largest) + np.float32(0.05)
    largest.CopyFrom(numpy_helper.from_array(changed, largest.name))
    onnx.save(model, folder / "model.onnx")
    manifest = load_artefact(version_folder).manifest
    old = manifest.files["model.onnx"]
    new = record(folder / "model.onnx", precision=old.precision, determinism=old.determinism)
    manifest_of(version_folder, files=manifest.files | {"model.onnx": new}).save(folder)
    return folder


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    manifest = load_artefact(folder).manifest
    return Manifest(**(vars(manifest) | changes))


def with_manifest(folder: Path, target: Path, **changes: Any) -> Path:
    """Copy an export and change what its manifest says."""
    copy = target / "tiny-random" / "1"
    shutil.copytree(folder, copy)
    manifest_of(folder, **changes).save(copy)
    return copy


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_checkpoint_and_export_agree(
    checkpoint_path: Path, version_folder: Path, precision: str, tmp_path: Path, capsys: Captured
) -> None:
    file = tmp_path / "report.json"
    command = [str(checkpoint_path), str(version_folder), "--precision", precision]
    assert main([*command, *QUICK, "--json", str(file)]) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report == json.loads(file.read_text())
    assert report["passed"] is True
    assert report["held_to"] == precision
    assert [form["ok"] for form in report["forms"]] == [6, 6]
    assert [list(form["batches"]) for form in report["forms"]] == [["2", "3"], ["2", "3"]]
    torch_form, onnx_form = report["forms"]
    assert (torch_form["rows_budget_levels"], onnx_form["rows_budget_levels"]) == (1, 0)
    assert "99.99 % of values within" in printed.err
    assert "within the budget" in printed.err
    assert "img/s" in printed.err


def test_graphs_are_named_by_their_files(version_folder: Path, capsys: Captured) -> None:
    graphs = [str(version_folder / name) for name in ("model.onnx", "model.fp16.onnx")]
    assert main([*graphs, *QUICK]) == 0
    report = last_line(capsys)
    assert [form["precision"] for form in report["forms"]] == ["fp32", "fp16"]
    assert report["held_to"] == "fp16"
    assert 0 < report["difference"]["share_differing"] < 1
    assert main([*graphs, *QUICK, "--hold-to", "int8"]) == 0
    assert last_line(capsys)["held_to"] == "int8"


def test_a_form_equals_itself(version_folder: Path, capsys: Captured) -> None:
    assert main([str(version_folder), str(version_folder), *QUICK]) == 0
    difference = last_line(capsys)["difference"]
    assert (difference["psnr_db"], difference["max_levels"]) == (None, 0)
    assert difference["min_cosine"] == pytest.approx(1)


def test_a_changed_weight_fails(
    version_folder: Path, broken_folder: Path, capsys: Captured
) -> None:
    assert main([str(version_folder), str(broken_folder), *QUICK]) == 1
    printed = capsys.readouterr()
    report = json.loads(printed.out.splitlines()[-1])
    assert report["passed"] is False
    assert "differs too much" in report["failures"][0]
    assert "FAILED: " in printed.err


def test_a_damaged_export_fails(version_folder: Path, tmp_path: Path, capsys: Captured) -> None:
    folder = tmp_path / "tiny-random" / "1"
    shutil.copytree(version_folder, folder)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)
    assert main([str(version_folder), str(folder), *QUICK]) == 1
    assert "is not the file its manifest describes" in capsys.readouterr().err


def test_a_server_agrees_with_what_it_serves(
    address: str, version_folder: Path, checkpoint_path: Path, capsys: Captured
) -> None:
    assert main([str(version_folder), address, *QUICK]) == 0
    report = last_line(capsys)
    assert report["difference"]["max_levels"] == 0
    assert report["forms"][1]["determinism"] == "bytes"
    assert list(report["forms"][1]["batches"]) == ["2", "3"]
    assert main([f"{address}/?model=tiny-random", str(checkpoint_path), *QUICK]) == 0


def test_a_server_of_other_weights_fails(
    broken_folder: Path, version_folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    golden = load_artefact(version_folder).manifest.golden
    lenient = type(golden)(**(vars(golden) | {"max_levels": {"fp32": 255}}))
    with serving(with_manifest(broken_folder, tmp_path, golden=lenient)) as address:
        assert main([str(version_folder), address, *QUICK]) == 1
    assert "differs too much" in last_line(capsys)["failures"][0]


class FlagsSeedOne(OnnxRuntimeBackend):
    """The real engine, which finds the image of seed 1 at psi 0.5 not ok; golden images are at psi 1."""

    def run(self, batch: Batch) -> Output:
        output = super().run(batch)
        seed_one = (batch.z == latent_from_seed(1, (64,))).all(axis=1)
        return Output(output.images, output.ok & ~(seed_one & (batch.truncation_psi == 0.5)))


def test_rows_that_a_server_will_not_show_are_not_ok_and_others_are(version_folder: Path) -> None:
    rows = Seeded(np.arange(3), np.ones(3, dtype=np.int64), np.full(3, 0.5, dtype=np.float32))
    with serving(version_folder, FlagsSeedOne) as address:
        form = open_form(address)
        assert len(consecutive(rows, 3)) == 1  # of one request
        output = form.run(rows)
    assert output.ok.tolist() == [True, False, True]
    expected = open_form(str(version_folder)).run(rows)
    assert (output.images[[0, 2]] == expected.images[[0, 2]]).all()


def test_requests_hold_seeds_that_follow_each_other() -> None:
    seed = np.array([0, 1, 2, 3, 5, 6, 7])
    class_id = np.array([0, 0, 0, 0, 0, 0, 1])
    psi = np.array([1, 1, 1, 1, 1, 0.7, 0.7], dtype=np.float32)
    pieces = consecutive(Seeded(seed, class_id, psi), longest=3)
    assert [(piece.start, piece.stop) for piece in pieces] == [
        (0, 3), (3, 4), (4, 5), (5, 6), (6, 7),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"source": {"checkpoint_sha256": "0" * 64}}, "checkpoint sha256 "),
        ({"source": {}}, "checkpoint sha256 "),
        ({"class_names": ("apple", "boat", "cat", "door", "elk")}, "'egg' and 5 classes with 'elk'"),
        ({"class_names": ("apple", "boat")}, "5 classes and 2 classes"),
    ],
)  # fmt: skip
def test_forms_of_different_models_are_refused_before_any_work(
    version_folder: Path, tmp_path: Path, changes: dict[str, Any], said: str, capsys: Captured
) -> None:
    other = with_manifest(version_folder, tmp_path, **changes)
    assert main([str(version_folder), str(other), *QUICK]) == 2
    printed = capsys.readouterr()
    assert "do not belong together" in printed.err
    assert said in printed.err
    assert "img/s" not in printed.err
    assert printed.out == ""


def test_shapes_are_compared_too(version_folder: Path, shipped_folder: Path) -> None:
    a, b = open_form(str(version_folder)), open_form(str(shipped_folder))
    with pytest.raises(InvalidInput, match="5 classes and 10 classes"):
        verify(a, b, VerifyOptions())


def test_checkpoint_and_export_know_the_same_of_the_model(
    checkpoint_path: Path, version_folder: Path, address: str
) -> None:
    names = (str(checkpoint_path), str(version_folder), address)
    first, *others = (open_form(name).identity for name in names)
    assert first.image_size == (32, 32)
    assert others == [first, first]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "nothing"], "VERSION_FOLDER/(model.onnx|model.fp16.onnx)"),
        (["{folder}/studio.onnx", "{folder}"], "nothing that can be compared"),
        (["{folder}", "{folder}", "--images", "2000"], "--budget full"),
        (["{folder}", "{folder}", "--budget", "full", "--images", "999"], "at least 1000"),
        (["{folder}", "{folder}", "--parity-classes", "0"], "at least 1"),
        (["{folder}", "{folder}", "--json", "{folder}/none/a.json"], "there is no folder"),
        (["http://127.0.0.1:9?modle=a", "{folder}"], "?model=NAME"),
    ],
)
def test_wrong_usage_is_explained(
    version_folder: Path, arguments: list[str], said: str, capsys: Captured
) -> None:
    assert main([word.format(folder=version_folder) for word in arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_server_that_is_not_there_or_lacks_the_model_is_explained(address: str) -> None:
    with pytest.raises(UnknownModel, match="no model 'other'"):
        open_form(f"{address}?model=other")
    with bind("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(BackendUnavailable, match="does not answer"):
        open_form(f"http://127.0.0.1:{port}")
    with pytest.raises(BackendError, match="answered 404"):
        open_form(f"{address}/elsewhere")


@pytest.mark.slow
def test_full_comparison_measures_the_distance_of_both_sets(
    version_folder: Path, broken_folder: Path
) -> None:
    """Of 32 images rather than the 1,000 that the command makes at least."""
    form, broken = (open_form(str(folder)) for folder in (version_folder, broken_folder))
    options = VerifyOptions(classes=2, max_batch=3, full_images=32)
    same, other = verify(form, form, options), verify(form, broken, options)
    assert same["difference"]["images"] == 38
    assert same["fd_effnetlite0"] == pytest.approx(0, abs=1e-3)
    assert other["fd_effnetlite0"] > 0.1
