"""The served checkpoint: everything comes back, and nothing else is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from cat_serve.errors import CheckpointError
from cat_serve.model.checkpoint import (
    METADATA_KEY,
    Checkpoint,
    load_checkpoint,
    parameter_count,
    read_safetensors,
    save_checkpoint,
)
from cat_serve.model.generator import Generator

GeneratorFactory = Callable[..., Generator]
Change = Callable[[dict[str, Any], dict[str, Tensor]], object]
NAMES = ("t-shirt", "trouser", "pull-over", "dress", "coat")


@pytest.fixture
def checkpoint(make_generator: GeneratorFactory, small_vae: AutoencoderKL) -> Checkpoint:
    training = {"nimg": 1234, "config": {"gamma": 0.01}, "data": {"licence": "MIT"}}
    return Checkpoint("tiny", make_generator(), small_vae, NAMES, training)


@pytest.fixture
def saved(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, checkpoint)
    return path


def test_checkpoint_comes_back_whole(checkpoint: Checkpoint, saved: Path) -> None:
    loaded = load_checkpoint(saved)
    z, y, psi = torch.randn(2, 64), torch.tensor([1, 4]), torch.tensor([0.3, 1.0])
    latents = checkpoint.generator(z, y, psi)
    assert torch.equal(loaded.generator(z, y, psi), latents)
    assert torch.equal(loaded.vae.decode(latents).sample, checkpoint.vae.decode(latents).sample)
    assert loaded.vae.config.scaling_factor == 0.6
    assert loaded.generator.config == checkpoint.generator.config
    assert (loaded.name, loaded.class_names) == ("tiny", NAMES)
    assert loaded.training == checkpoint.training


def test_loaded_models_are_for_inference(saved: Path) -> None:
    loaded = load_checkpoint(saved)
    for module in (loaded.generator, loaded.vae):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_only_parameters_are_counted(checkpoint: Checkpoint) -> None:
    total = sum(tensor.numel() for tensor in checkpoint.generator.state_dict().values())
    assert parameter_count(checkpoint.generator) == total - checkpoint.generator.w_avg.numel()


def test_failed_write_leaves_the_old_file(checkpoint: Checkpoint, saved: Path) -> None:
    before = saved.read_bytes()
    checkpoint.training["unwritable"] = object()
    with pytest.raises(TypeError):
        save_checkpoint(saved, checkpoint)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d, t: t.pop("generator.w_avg"), "w_avg"),
        (lambda d, t: t.pop("vae.decoder.conv_in.weight"), "conv_in"),
        (lambda d, t: t.update({"discriminator.head": torch.ones(1)}), "discriminator.head"),
        (lambda d, t: t.update({"generator.extra": torch.ones(1)}), "extra"),
        (lambda d, t: t.update({"generator.w_avg": torch.ones(5, 8)}), "w_avg"),
        (lambda d, t: d.update(format="somebody-else-1"), "somebody-else-1"),
        (lambda d, t: d["generator"].update(colour="red"), "colour"),
        (lambda d, t: d["generator"].update(width=18), "18"),
        (lambda d, t: d["generator"].update(width=32), "size mismatch"),
        (lambda d, t: d.pop("vae"), "vae"),
        (lambda d, t: d.pop("class_names"), "class_names"),
    ],
    ids=[
        "w_avg missing", "vae tensor missing", "foreign tensor", "extra tensor", "other shape",
        "other format", "unknown setting", "impossible setting", "other width", "no vae", "no names",
    ],
)  # fmt: skip
def test_checkpoint_that_does_not_fit_is_refused(saved: Path, change: Change, named: str) -> None:
    description, tensors = read_safetensors(saved)
    change(description, tensors)
    save_file(tensors, saved, metadata={METADATA_KEY: json.dumps(description)})
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(saved)


def write_pickle(path: Path) -> None:
    torch.save({"generator.w_avg": torch.zeros(5, 16)}, path)


def write_cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def write_without_description(path: Path) -> None:
    save_file({"generator.w_avg": torch.zeros(5, 16)}, path)


def write_with_a_list(path: Path) -> None:
    save_file({"generator.w_avg": torch.zeros(5, 16)}, path, metadata={METADATA_KEY: "[1]"})


@pytest.mark.parametrize(
    "spoil",
    [
        write_pickle,
        write_cut_off,
        write_without_description,
        write_with_a_list,
        lambda path: path.write_bytes(b"\x80\x04garbage" * 50),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
    ],
    ids=["pickle", "cut off", "no description", "a list", "garbage", "empty", "missing"],
)
def test_file_that_is_no_checkpoint_is_refused(
    saved: Path, spoil: Callable[[Path], object]
) -> None:
    spoil(saved)
    with pytest.raises(CheckpointError, match=saved.name):
        load_checkpoint(saved)
