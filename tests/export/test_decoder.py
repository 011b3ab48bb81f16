"""The same generator behind a tiny decoder, its weights in a file beside the graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderTiny

from cat_serve.backends.onnxruntime import OnnxRuntimeBackend
from cat_serve.backends.torch import TorchBackend
from cat_serve.errors import ArtefactError, CheckpointError, InvalidInput
from cat_serve.manifest import load_artefact
from cat_serve.model.checkpoint import load_checkpoint
from cat_serve.model.decoder import Decoder, to_uint8
from export.decoder import with_decoder
from export.onnx import main
from export.probes import probe_batch

NARROW = (8, 8, 8)


def save_tiny(folder: Path, **changes: object) -> AutoencoderTiny:
    torch.manual_seed(5)
    values: dict[str, object] = {
        "encoder_block_out_channels": NARROW,
        "decoder_block_out_channels": NARROW,
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    }
    vae = AutoencoderTiny(**(values | changes)).eval()
    with torch.no_grad():  # else every image is black
        vae.decoder.layers[-1].weight.mul_(20)
        vae.decoder.layers[-1].bias.fill_(0.5)
    vae.save_pretrained(folder)
    return vae


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder") / "narrow-taesd"
    save_tiny(folder)
    return folder


@pytest.fixture(scope="module")
def own_checkpoint(checkpoint_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: the checkpoint with the other decoder is written beside it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return Path(shutil.copy2(checkpoint_path, folder / checkpoint_path.name))


@pytest.fixture(scope="module")
def exported(
    own_checkpoint: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The version folder that the command writes."""
    repository = tmp_path_factory.mktemp("repository")
    command = [str(own_checkpoint), "--repository", str(repository), "--precision", "fp32"]
    command += ["--studio-precision", "none", "--decoder", str(tiny_folder), "--name", "small-tiny"]
    assert main([*command, "--external-data", "--parity-classes", "2", "--max-batch", "4"]) == 0
    return repository / "small-tiny" / "1"


def test_another_decoder_is_another_model_that_tells_where_it_is_from(
    exported: Path, own_checkpoint: Path
) -> None:
    manifest = load_artefact(exported).manifest
    assert manifest.model == "small-tiny"
    decoder = manifest.source["decoder"]
    assert (decoder["kind"], decoder["folder"]) == ("AutoencoderTiny", "narrow-taesd")
    assert 0 < decoder["psnr_to_replaced_db"] < 60  # random weights: other images
    assert len(manifest.source["from_checkpoint_sha256"]) == 64
    assert manifest.source["seed"] == load_checkpoint(own_checkpoint).training["seed"]


def test_tiny_decoder_decodes_the_generator_s_latents(
    exported: Path, own_checkpoint: Path, tiny_folder: Path
) -> None:
    """Against the two parts run one after the other."""
    artefact = load_artefact(exported)
    batch = probe_batch(5, artefact.manifest.z_shape, 2)
    generator = load_checkpoint(own_checkpoint).generator
    vae = AutoencoderTiny.from_pretrained(tiny_folder, low_cpu_mem_usage=False).eval()
    with torch.inference_mode():
        latents = generator(*(torch.from_numpy(array) for array in batch.feeds().values()))
        images = to_uint8(Decoder(vae)(latents)).numpy()
    output = OnnxRuntimeBackend(artefact).run(batch)
    assert output.ok.all()
    assert np.abs(output.images.astype(int) - images).max() <= 1
    assert images.std() > 1
    # the checkpoint beside is the same model in torch
    by_torch = TorchBackend(artefact, own_checkpoint.with_name("small-tiny.safetensors"))
    np.testing.assert_array_equal(by_torch.run(batch).images, images)


def test_weights_beside_the_graph_are_served_and_hashed(exported: Path, tmp_path: Path) -> None:
    graph = onnx.load(exported / "model.onnx", load_external_data=False)
    outside = [t for t in graph.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert {entry.value for t in outside for entry in t.external_data if entry.key == "location"} == {"model.onnx.data"}  # fmt: skip
    record = load_artefact(exported).manifest.files["model.onnx.data"]
    assert record.size_bytes > (exported / "model.onnx").stat().st_size
    damaged = Path(shutil.copytree(exported, tmp_path / "small-tiny" / "1"))
    with (damaged / "model.onnx.data").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"\0\1\2\3")
    with pytest.raises(ArtefactError, match=r"model\.onnx\.data"):
        load_artefact(damaged)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latent_channels": 5}, "5 channels to 4 px a cell, .* 4 channels and 4 px"),
        ({"decoder_block_out_channels": (8, 8), "num_decoder_blocks": (1, 1)}, "to 2 px a cell"),
    ],
)
def test_decoder_of_other_latents_is_refused(
    own_checkpoint: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    save_tiny(tmp_path / "other", **changes)
    with pytest.raises(CheckpointError, match=said):
        with_decoder(own_checkpoint, tmp_path / "other", "new")
    assert not own_checkpoint.with_name("new.safetensors").exists()


@pytest.mark.parametrize("name", ["tiny-random", "a/b", "UPPER"])
def test_name_that_another_decoder_cannot_have_is_refused(
    own_checkpoint: Path, tiny_folder: Path, name: str
) -> None:
    before = own_checkpoint.read_bytes()
    with pytest.raises(InvalidInput):
        with_decoder(own_checkpoint, tiny_folder, name)
    assert own_checkpoint.read_bytes() == before


@pytest.mark.parametrize("flags", [["--decoder", "x"], ["--name", "x"]])
def test_decoder_and_name_belong_together(
    own_checkpoint: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(own_checkpoint), *flags]) == 2
    assert "belong together" in capsys.readouterr().err


def test_export_reports_its_parity(exported: Path) -> None:
    report = json.loads((exported / "manifest.json").read_text())["parity"]["model.onnx"]
    assert report["classes"] == 2
    assert report["difference"]["images"] == 6
