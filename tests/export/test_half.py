"""The FP16 graph: what is half in it, and that the gate sees what half precision breaks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto

from cat_serve.errors import ParityError
from cat_serve.manifest import load_artefact
from cat_serve.model.checkpoint import load_checkpoint, save_checkpoint
from cat_serve.model.fused import FusedModel
from export.graphs import onnx_engine
from export.onnx import ExportOptions, export
from export.parity import compare
from export.probes import probe_batch

ONLY_FP16 = ("fp16",)


def weights(path: Path) -> dict[str, int]:
    """Return the ONNX dtype of every weight that has a name of its own."""
    graph = onnx.load(path).graph
    return {t.name: t.data_type for t in graph.initializer if t.name.startswith(("gen", "dec"))}


def test_weights_are_half_but_for_mapping_and_class_means(version_folder: Path) -> None:
    dtypes = weights(version_folder / "model.fp16.onnx")
    full = {name for name, dtype in dtypes.items() if dtype == TensorProto.FLOAT}
    half = {name for name, dtype in dtypes.items() if dtype == TensorProto.FLOAT16}
    assert half | full == set(dtypes)
    assert all(
        name.startswith(("generator.mapping.", "generator.w_avg", "decoder.mean", "decoder.std"))
        for name in full
    )
    assert {"generator.mapping.first.weight", "generator.w_avg"} <= full
    assert any(name.startswith("generator.blocks.") for name in half)
    assert any(name.startswith("decoder.decoder.") for name in half)


def test_every_norm_computes_in_float32(version_folder: Path) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(version_folder / "model.fp16.onnx"))
    dtypes = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    norms = [
        node
        for node in model.graph.node
        if node.op_type in ("InstanceNormalization", "GroupNormalization", "ReduceMean", "Pow")
    ]
    assert {node.op_type for node in norms} >= {"InstanceNormalization", "ReduceMean"}
    assert {dtypes[node.output[0]] for node in norms} == {TensorProto.FLOAT}


def test_half_is_close_to_torch_in_float32_and_not_the_same(
    version_folder: Path, checkpoint_path: Path
) -> None:
    batch = probe_batch(5, (64,))
    reference = FusedModel.from_checkpoint(load_checkpoint(checkpoint_path)).run(batch)
    difference = compare(reference, onnx_engine(version_folder / "model.fp16.onnx")(batch))
    assert 40 <= difference.psnr_db < 80
    assert difference.almost_all_levels <= 8
    assert difference.share_differing > 0.001


def overflowing_checkpoint(source: Path, path: Path) -> Path:
    """Write a checkpoint whose decoder passes 65,504 before its first norm, harmlessly in float32."""
    checkpoint = load_checkpoint(source)
    with torch.no_grad():
        for parameter in checkpoint.vae.decoder.conv_in.parameters():
            parameter.mul_(2e4 / parameter.abs().max())
    save_checkpoint(path, checkpoint)
    return path


@pytest.mark.slow
def test_decoder_that_overflows_half_fails_the_gate_and_passes_in_float32(
    checkpoint_path: Path, tmp_path: Path
) -> None:
    path = overflowing_checkpoint(checkpoint_path, tmp_path / "tiny-random.safetensors")
    with pytest.raises(ParityError, match=r"15 rows not ok[\s\S]*--decoder-precision fp32"):
        export(path, tmp_path / "a", options=ExportOptions(ONLY_FP16, "fp16", None))
    folder = export(path, tmp_path / "b", options=ExportOptions(ONLY_FP16, "fp32", None))
    files = load_artefact(folder).manifest.files
    assert set(files) == {"model.fp16.onnx", "golden.png"}
    record = files["model.fp16.onnx"]
    assert (record.precision, record.decoder_precision) == ("fp16", "fp32")
    dtypes = weights(folder / "model.fp16.onnx")
    assert {dtypes[name] for name in dtypes if name.startswith("decoder.")} == {TensorProto.FLOAT}
    assert TensorProto.FLOAT16 in dtypes.values()
