"""An autoencoder in latent diffusion's layout decodes and encodes as its own equations say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cat_serve.errors import CheckpointError
from cat_serve.importers.ldm_vae import config_of, load_ldm_vae
from cat_serve.importers.tensors import Tensors

from . import ldm

CH, MULT, CHANNELS = 32, (1, 1, 2), 6


@pytest.fixture(scope="module")
def state() -> ldm.State:
    return ldm.drawn(ldm.layout(CH, MULT, CHANNELS))


def write(path: Path, state: dict[str, Any]) -> Path:
    """Write a file as VA-VAE's training does: with the loss's weights and the model that it aligns with."""
    others = {"foundation_model.model.cls_token": torch.zeros(1), "loss.logvar": torch.zeros(()),
              "linear_proj.weight": torch.zeros(2, 2)}  # fmt: skip
    torch.save({"state_dict": state | others, "epoch": 3}, path)
    return path


def test_images_and_moments_are_those_of_its_equations(state: ldm.State, tmp_path: Path) -> None:
    vae = load_ldm_vae(write(tmp_path / "vavae.pt", state))
    latents = torch.randn(2, CHANNELS, 4, 4, generator=torch.Generator().manual_seed(1))
    images = vae.decode(latents).sample
    torch.testing.assert_close(images, ldm.decoded(state, len(MULT), latents), rtol=1e-4, atol=1e-4)
    found = vae.encode(images).latent_dist.parameters
    torch.testing.assert_close(found, ldm.moments(state, len(MULT), images), rtol=1e-4, atol=1e-4)
    assert vae.config.scaling_factor == 1


def test_published_shape_is_f16d32(tmp_path: Path) -> None:
    """ch 128, mult 1 1 2 2 4, 32 channels, attention at the lowest level: 16 px a cell."""
    keys = ldm.layout(128, (1, 1, 2, 2, 4), 32)
    state = {key: torch.empty(shape, device="meta") for key, shape in keys.items()}
    config = config_of(Tensors(state, tmp_path, "one"))
    assert config["block_out_channels"] == (128, 128, 256, 256, 512)
    assert config["latent_channels"] == 32
    assert [kind.startswith("Attn") for kind in config["up_block_types"]] == [True] + [False] * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("decoder.mid.attn_1.q.bias"), "no tensor decoder.mid.attn_1.q.bias"),
        (lambda s: s.update({"decoder.extra": torch.zeros(1)}), "decoder.extra"),
        (lambda s: s.update({"decoder.conv_in.bias": torch.zeros(3)}), "decoder.conv_in.bias"),
        (lambda s: s["quant_conv.bias"].fill_(float("nan")), "quant_conv.bias is not finite"),
    ],
)
def test_another_file_is_refused(state: ldm.State, change: Any, said: str, tmp_path: Path) -> None:
    changed = {key: tensor.clone() for key, tensor in state.items()}
    change(changed)
    with pytest.raises(CheckpointError, match=said):
        load_ldm_vae(write(tmp_path / "vavae.pt", changed))
