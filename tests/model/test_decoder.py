"""From latents to bytes: the scale of the VAE's latents, and one rounding rule in torch and NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve import images
from cat_serve.errors import CheckpointError
from cat_serve.model.decoder import Decoder, to_uint8
from cat_serve.model.vae import latent_affine, load_vae, vae_sha256


def test_decoder_divides_by_the_scaling_factor(small_vae: AutoencoderKL) -> None:
    latents = torch.randn(2, 4, 8, 8)
    expected = small_vae.decode(latents / 0.6).sample
    assert expected.shape == (2, 3, 16, 16)
    torch.testing.assert_close(Decoder(small_vae)(latents), expected)


def rescaled(vae: AutoencoderKL, **settings: object) -> AutoencoderKL:
    """The same weights with another configuration."""
    other = AutoencoderKL.from_config(dict(vae.config), **settings).eval()
    other.load_state_dict(vae.state_dict())
    return other.requires_grad_(False)


def test_scaling_factor_alone_is_one_scale_for_all_channels(small_vae: AutoencoderKL) -> None:
    """SD-VAE's configuration."""
    vae = rescaled(small_vae, scaling_factor=0.18215)
    assert latent_affine(vae) == ((0.0,) * 4, pytest.approx((1 / 0.18215,) * 4))


def test_each_channel_has_its_own_mean_and_scale(small_vae: AutoencoderKL) -> None:
    mean, std = [0.5, -0.25, 0.0, 1.0], [2.0, 1.0, 0.5, 3.0]
    vae = rescaled(small_vae, scaling_factor=1.0, latents_mean=mean, latents_std=std)
    assert latent_affine(vae) == (tuple(mean), tuple(std))
    latents = torch.randn(2, 4, 8, 8)
    posterior = latents * torch.tensor(std).view(4, 1, 1) + torch.tensor(mean).view(4, 1, 1)
    torch.testing.assert_close(Decoder(vae)(latents), vae.decode(posterior).sample)
    halved = rescaled(vae, scaling_factor=0.5)
    assert latent_affine(halved) == (tuple(mean), (4.0, 2.0, 1.0, 6.0))


@pytest.mark.parametrize(
    "settings",
    [
        {"latents_mean": [0.0]},
        {"latents_std": [1.0] * 3},
        {"latents_std": [1.0, 1.0, 0.0, 1.0]},
        {"scaling_factor": -0.5},
    ],
)
def test_scale_that_fits_no_latents_is_refused(
    small_vae: AutoencoderKL, settings: dict[str, object]
) -> None:
    with pytest.raises(CheckpointError, match="4 latent channels"):
        latent_affine(rescaled(small_vae, **settings))


def test_scale_belongs_to_the_identity_of_a_vae(small_vae: AutoencoderKL) -> None:
    """A VAE with other scales makes other latents: data made with it are another VAE's."""
    settings: list[dict[str, object]] = [
        {}, {"scaling_factor": 0.7}, {"latents_mean": [0.1] * 4}, {"latents_std": [1.1] * 4}
    ]  # fmt: skip
    assert len({vae_sha256(rescaled(small_vae, **changes)) for changes in settings}) == 4
    assert vae_sha256(rescaled(small_vae)) == vae_sha256(small_vae)


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


def test_shift_factor_is_a_mean_of_all_channels(small_vae: AutoencoderKL) -> None:
    vae = rescaled(small_vae, scaling_factor=0.5, shift_factor=0.1)
    assert latent_affine(vae) == ((0.1,) * 4, (2.0,) * 4)
