from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from cat_serve.contract import (
    Batch,
    Precision,
    inputs,
    outputs,
    studio_inputs,
    studio_outputs,
)
from cat_serve.errors import ArtefactError, CheckpointError, ParityError
from cat_serve.manifest import GRAPH_NAMES, STUDIO_NAME, load_artefact
from cat_serve.model.checkpoint import load_checkpoint
from cat_serve.model.fused import FusedModel
from export import graphs
from export.graphs import onnx_engine
from export.onnx import ExportOptions, export, main

ONNX_DTYPES = {"tensor(float)": "float32", "tensor(int64)": "int64",
               "tensor(uint8)": "uint8", "tensor(bool)": "bool"}  # fmt: skip
NAMES = (*GRAPH_NAMES.values(), STUDIO_NAME)


def some_batch(size: int, seed: int = 3) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch(
        rng.standard_normal((size, 64), dtype=np.float32),
        rng.integers(0, 5, size),
        rng.random(size, dtype=np.float32),
    )


@pytest.mark.parametrize("name", NAMES)
def test_graph_has_exactly_the_tensors_of_the_contract(version_folder: Path, name: str) -> None:
    import onnxruntime

    manifest = load_artefact(version_folder).manifest
    session = onnxruntime.InferenceSession(str(version_folder / name))
    wanted = (inputs(manifest.z_shape), outputs(manifest.image_size))
    if name == STUDIO_NAME:
        wanted = (
            studio_inputs(manifest.z_shape),
            studio_outputs(manifest.image_size, manifest.stages),
        )
    for specs, values in zip(wanted, (session.get_inputs(), session.get_outputs()), strict=True):
        got = [(v.name, ONNX_DTYPES[v.type], tuple(v.shape)) for v in values]
        assert got == [(s.name, s.dtype, s.shape) for s in specs]


@pytest.mark.parametrize("name", NAMES)
def test_graph_is_valid_and_of_the_stated_opset(version_folder: Path, name: str) -> None:
    model = onnx.load(version_folder / name)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain: entry.version for entry in model.opset_import}[""] == 20


@pytest.mark.parametrize("name", NAMES)
def test_graph_tells_nothing_of_the_machine_that_made_it(
    version_folder: Path, shipped_folder: Path, project_root: Path, name: str
) -> None:
    for folder in (version_folder, shipped_folder):
        content = (folder / name).read_bytes()
        assert str(project_root).encode() not in content
        assert b"stack_trace" not in content


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_graph_gives_what_the_unfused_parts_give(
    version_folder: Path, checkpoint_path: Path, size: int
) -> None:
    """The reference here goes through the separate parts, not through the module that was traced."""
    checkpoint = load_checkpoint(checkpoint_path)
    batch = some_batch(size)
    with torch.no_grad():
        latents = checkpoint.generator(*(torch.from_numpy(a) for a in batch.feeds().values()))
        decoded = checkpoint.vae.decode(latents / checkpoint.vae.config.scaling_factor).sample
    exact = (decoded.permute(0, 2, 3, 1).numpy().astype(np.float64) + 1) * 127.5
    output = onnx_engine(version_folder / "model.onnx")(batch)
    assert output.ok.all()
    assert np.abs(np.clip(exact, 0, 255) - output.images).max() < 0.51


def test_psi_is_live_and_exact_at_zero(version_folder: Path) -> None:
    engine = onnx_engine(version_folder / "model.onnx")
    z = some_batch(4).z
    same_class = np.full(4, 2)
    at = {
        psi: engine(Batch(z, same_class, np.full(4, psi, dtype=np.float32))).images
        for psi in (0.0, 0.5, 1.0)
    }
    assert (at[0.0] == at[0.0][:1]).all()
    assert not (at[1.0] == at[1.0][:1]).all()
    assert not (at[0.5] == at[1.0]).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [("class_id", -1), ("class_id", 5), ("class_id", 2**40), ("truncation_psi", -0.01),
     ("truncation_psi", 1.01), ("truncation_psi", np.nan), ("truncation_psi", np.inf),
     ("z", np.nan), ("z", np.inf)],
)  # fmt: skip
def test_a_bad_row_is_not_ok_and_harms_no_other(
    version_folder: Path, field: str, value: float
) -> None:
    engine = onnx_engine(version_folder / "model.onnx")
    good = engine(some_batch(3))
    bad = some_batch(3)
    getattr(bad, field)[1] = value
    output = engine(bad)
    assert output.ok.tolist() == [True, False, True]
    assert (output.images[[0, 2]] == good.images[[0, 2]]).all()


def test_module_and_graph_agree_on_bad_rows(version_folder: Path, checkpoint_path: Path) -> None:
    model = FusedModel.from_checkpoint(load_checkpoint(checkpoint_path))
    batch = some_batch(4)
    batch.class_id[0], batch.truncation_psi[1], batch.z[2, 0] = 9, np.nan, np.nan
    ours, theirs = model.run(batch), onnx_engine(version_folder / "model.onnx")(batch)
    assert ours.ok.tolist() == theirs.ok.tolist() == [False, False, False, True]
    assert np.abs(ours.images.astype(int) - theirs.images).max() <= 1


def test_fusing_leaves_the_checkpoint_as_it_is(checkpoint_path: Path) -> None:
    checkpoint = load_checkpoint(checkpoint_path)
    before = {key: value.clone() for key, value in checkpoint.generator.state_dict().items()}
    FusedModel.from_checkpoint(checkpoint)
    after = checkpoint.generator.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_manifest_tells_what_was_measured(version_folder: Path) -> None:
    artefact = load_artefact(version_folder)
    manifest = artefact.manifest
    assert manifest.model == "tiny-random"
    assert manifest.class_names == ("apple", "boat", "cat", "door", "egg")
    assert (manifest.z_shape, manifest.image_size) == ((64,), (32, 32))
    assert set(manifest.files) == {*NAMES, "golden.png"}
    assert set(manifest.parity) == set(NAMES)
    assert manifest.parity["model.onnx"]["difference"]["max_levels"] <= 1
    assert (manifest.stages, manifest.precisions) == (3, ("fp32", "fp16"))
    precisions = [manifest.files[name].precision for name in NAMES]
    assert precisions == ["fp32", "fp16", "fp32"]
    for name in NAMES:
        report = manifest.parity[name]
        assert report["difference"]["images"] == 15
        assert report["difference"]["not_ok"] == 0
        assert set(report["batch_invariance_max_levels"]) == {"2", "3", "7", "16", "64"}
        worst = max(report["batch_invariance_max_levels"].values())
        assert (manifest.files[name].determinism == "bytes") == (worst == 0)
    assert len(artefact.version) == 12


def test_golden_images_are_those_of_the_graph(version_folder: Path) -> None:
    from PIL import Image

    artefact = load_artefact(version_folder)
    golden = artefact.manifest.golden
    stacked = np.asarray(Image.open(version_folder / golden.file))
    batch = golden.batch(artefact.manifest.z_shape)
    output = onnx_engine(version_folder / "model.onnx")(batch)
    assert output.ok.all()
    assert np.array_equal(stacked.reshape(output.images.shape), output.images)
    half = onnx_engine(version_folder / "model.fp16.onnx")(batch)
    worst = np.abs(half.images.astype(int) - output.images).max()
    assert 2 * worst <= golden.max_levels["fp16"]


@pytest.mark.usefixtures("traced_before")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_corrupted_weight_fails_parity_and_leaves_no_artefact(
    checkpoint_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    write_graph = graphs.write_graph

    def corrupting(model: FusedModel, example: Batch, path: Path, external_data: bool) -> None:
        write_graph(model, example, path, external_data)
        graph = onnx.load(path)
        weight = max(graph.graph.initializer, key=lambda t: np.prod(t.dims))
        values = numpy_helper.to_array(weight).copy()
        assert values.dtype == {"fp32": np.float32, "fp16": np.float16}[precision]
        values.reshape(-1)[: values.size // 2] *= -1
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
        onnx.save(graph, path)

    options = ExportOptions((precision,), studio_precision=None)
    export(checkpoint_path, tmp_path / "whole", options=options)
    monkeypatch.setattr(graphs, "write_graph", corrupting)
    with pytest.raises(ParityError, match="differs too much"):
        export(checkpoint_path, tmp_path / "corrupted", options=options)
    assert list((tmp_path / "corrupted").rglob("*.*")) == []


@pytest.mark.usefixtures("traced_before")
def test_the_command_replaces_the_old_export_and_drops_its_card(
    checkpoint_path: Path,
    version_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "tiny-random" / "3"
    shutil.copytree(version_folder, target)
    (target / "card.md").write_text("measured")
    (target / "stale.txt").write_text("old")
    command = [str(checkpoint_path), "--repository", str(tmp_path), "--version", "3"]
    assert main([*command, "--precision", "fp32", "--studio-precision", "none"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["folder"] == str(target)
    assert summary["version"] == load_artefact(target).version
    assert not (target / "card.md").exists()  # it speaks of other weights
    assert sorted(path.name for path in target.iterdir()) == [
        "golden.png", "manifest.json", "model.onnx",
    ]  # fmt: skip
    graph = "model.onnx"
    first, again = (load_artefact(folder).manifest.files for folder in (version_folder, target))
    assert again[graph] == first[graph]
    assert load_artefact(target).manifest.stages == 0


@pytest.mark.parametrize("name", ["model.onnx", "model.fp16.onnx"])
def test_z_of_zeros_is_finite(
    version_folder: Path, shipped_folder: Path, checkpoint_path: Path, name: str
) -> None:
    """The mapping's epsilon of 1e-8 must be in the graph: the exporter's optimiser drops such a constant."""
    for folder in (version_folder, shipped_folder):
        batch = some_batch(4)
        batch.z[:] = 0
        assert onnx_engine(folder / name)(batch).ok.all()
    reference = FusedModel.from_checkpoint(load_checkpoint(checkpoint_path)).run(batch)
    half = 8 if name == "model.fp16.onnx" else 1
    images = onnx_engine(version_folder / name)(batch).images
    assert np.abs(images.astype(int) - reference.images).max() <= half


def test_a_missing_checkpoint_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "none.safetensors"), "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint")


@pytest.mark.parametrize("damage", ["changed", "missing", "format", "json"])
def test_a_damaged_artefact_is_refused(version_folder: Path, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "tiny-random" / "1"
    shutil.copytree(version_folder, folder)
    manifest = folder / "manifest.json"
    match damage:
        case "changed":
            graph = bytearray((folder / "model.onnx").read_bytes())
            graph[-1] ^= 1
            (folder / "model.onnx").write_bytes(graph)
        case "missing":
            (folder / "golden.png").unlink()
        case "format":
            manifest.write_text(json.dumps({"format": "other"}))
        case "json":
            manifest.write_text(manifest.read_text()[:-20])
    with pytest.raises(ArtefactError) as refused:
        load_artefact(folder)
    assert refused.value.hint


def test_only_checkpoints_are_exported(tmp_path: Path) -> None:
    path = tmp_path / "pickle.safetensors"
    torch.save({"generator": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint"):
        export(path, tmp_path)
