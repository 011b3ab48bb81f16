"""From latents to bytes: the VAE's scaling, and one rounding rule in torch and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve import images
from cat_serve.errors import CheckpointError
from cat_serve.model.decoder import Decoder, load_vae, to_uint8


def test_decoder_divides_by_the_scaling_factor(small_vae: AutoencoderKL) -> None:
    latents = torch.randn(2, 4, 8, 8)
    expected = small_vae.decode(latents / 0.6).sample
    assert expected.shape == (2, 3, 16, 16)
    torch.testing.assert_close(Decoder(small_vae)(latents), expected)


def test_vae_without_post_quant_conv_is_decoded(small_vae: AutoencoderKL) -> None:
    vae = AutoencoderKL.from_config(dict(small_vae.config), use_post_quant_conv=False).eval()
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(Decoder(vae)(latents), vae.decode(latents / 0.6).sample)


@pytest.mark.parametrize(
    ("value", "byte"),
    [
        (-1.0, 0),
        (1.0, 255),
        (0.0, 128),  # 127.5: ties go to the even number
        (-2.0, 0),
        (7.0, 255),
        (1 / 127.5 - 1, 1),
        (0.6 / 127.5 - 1, 1),  # truncation would give 0
        (254.4 / 127.5 - 1, 254),
    ],
)
def test_bytes_are_rounded_and_clamped(value: float, byte: int) -> None:
    assert to_uint8(torch.full((1, 3, 1, 1), value)).flatten().tolist() == [byte] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_torch_and_numpy_round_alike(dtype: torch.dtype) -> None:
    ties = (torch.arange(256) + 0.5) / 127.5 - 1
    x = torch.cat([ties, torch.linspace(-1.2, 1.2, 6 * 128 - 256)]).to(dtype).view(2, 3, 8, 16)
    by_torch = to_uint8(x)
    assert (by_torch.dtype, by_torch.shape) == (torch.uint8, (2, 8, 16, 3))
    np.testing.assert_array_equal(by_torch.numpy(), images.to_uint8(x.permute(0, 2, 3, 1).numpy()))


def test_vae_folder_comes_back_in_float32(small_vae: AutoencoderKL, tmp_path: Path) -> None:
    small_vae.save_pretrained(tmp_path / "vae")
    loaded = load_vae(tmp_path / "vae")
    assert not loaded.training
    assert loaded.config.scaling_factor == 0.6
    for mine, theirs in zip(loaded.parameters(), small_vae.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not mine.requires_grad


def test_folder_without_a_vae_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"training\.train_vae"):
        load_vae(tmp_path)
