"""VAEs that others made: found, loaded in float32, refused where they are something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from cat_serve.errors import CheckpointError
from cat_serve.model.checkpoint import Checkpoint, load_checkpoint, open_vae, save_checkpoint
from cat_serve.model.decoder import Decoder
from cat_serve.model.generator import Generator
from cat_serve.model.vae import latent_affine, load_decoder, load_vae, upscale, vae_sha256

GeneratorFactory = Callable[..., Generator]


@pytest.fixture(scope="module")
def sd_vae() -> AutoencoderKL:
    """SD-VAE's configuration in everything but the widths: 8 times smaller, 4 channels, 0.18215."""
    torch.manual_seed(0)
    levels = 4
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=4, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4, 8, 8, 8), sample_size=256, scaling_factor=0.18215,
    )  # fmt: skip
    return vae.eval().requires_grad_(False)


def assert_loads(path: Path, vae: AutoencoderKL, atol: float = 0.0) -> None:
    loaded = load_vae(path)
    assert loaded.dtype == torch.float32
    for key, tensor in vae.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], tensor, rtol=0, atol=atol)


def test_sd_vae_is_loaded_and_makes_latents_eight_times_smaller(
    sd_vae: AutoencoderKL, tmp_path: Path
) -> None:
    sd_vae.save_pretrained(tmp_path)
    assert_loads(tmp_path, sd_vae)
    loaded = load_vae(tmp_path)
    assert latent_affine(loaded)[1] == pytest.approx((1 / 0.18215,) * 4)
    assert loaded.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 4, 8, 8)


def test_vae_of_a_pipeline_is_found(sd_vae: AutoencoderKL, tmp_path: Path) -> None:
    sd_vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert_loads(tmp_path, sd_vae)


def test_half_precision_is_loaded_where_it_is_all_there_is(
    sd_vae: AutoencoderKL, tmp_path: Path
) -> None:
    half = AutoencoderKL.from_config(dict(sd_vae.config))
    half.load_state_dict(sd_vae.state_dict())
    half.half().save_pretrained(tmp_path, variant="fp16")
    assert_loads(tmp_path, sd_vae, atol=1e-3)
    sd_vae.save_pretrained(tmp_path)
    assert_loads(tmp_path, sd_vae)


def test_pickled_weights_are_refused_with_the_way_out(
    sd_vae: AutoencoderKL, tmp_path: Path
) -> None:
    sd_vae.save_pretrained(tmp_path, safe_serialization=False)
    assert (tmp_path / "diffusion_pytorch_model.bin").is_file()
    with pytest.raises(CheckpointError, match=r"only a \.bin file") as refused:
        load_vae(tmp_path)
    assert "use_safetensors=False" in str(refused.value)


def test_hub_name_is_taken_from_the_local_cache_alone(
    sd_vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = Path("somebody/sd-vae")
    with pytest.raises(CheckpointError, match="hf download somebody/sd-vae --local-dir"):
        load_vae(name)
    repository = tmp_path / "models--somebody--sd-vae"
    sd_vae.save_pretrained(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert_loads(name, sd_vae)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_class_name": "AutoencoderTiny"}', "holds a AutoencoderTiny"),
        ("{}", "no diffusers configuration"),
        ("{", "no diffusers configuration"),
    ],
)
def test_other_networks_are_refused(
    sd_vae: AutoencoderKL, tmp_path: Path, text: str, said: str
) -> None:
    sd_vae.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load_vae(tmp_path)


def test_damaged_weights_are_refused(sd_vae: AutoencoderKL, tmp_path: Path) -> None:
    sd_vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="cannot be loaded as a VAE"):
        load_vae(tmp_path)


# --- tiny decoders -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> AutoencoderTiny:
    """TAESD's shape, narrow: 8 times larger, four channels, latents as they were scaled."""
    torch.manual_seed(0)
    narrow = (8, 8, 8, 8)
    vae = AutoencoderTiny(encoder_block_out_channels=narrow, decoder_block_out_channels=narrow)
    return vae.eval().requires_grad_(False)


def test_tiny_decoder_takes_scaled_latents_as_they_are(
    tiny: AutoencoderTiny, tmp_path: Path
) -> None:
    tiny.save_pretrained(tmp_path)
    loaded = load_decoder(tmp_path)
    assert latent_affine(loaded) == ((0.0,) * 4, (1.0,) * 4)
    latents = torch.randn(2, 4, 4, 4)
    images = Decoder(loaded)(latents)
    assert images.shape == (2, 3, 4 * upscale(loaded), 4 * upscale(loaded)) == (2, 3, 32, 32)
    torch.testing.assert_close(images, tiny.decode(latents).sample)


def test_tiny_decoder_is_no_vae_to_train_with(tiny: AutoencoderTiny, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="holds a AutoencoderTiny"):
        load_vae(tmp_path)


def test_checkpoint_with_a_tiny_decoder_comes_back(
    tiny: AutoencoderTiny, make_generator: GeneratorFactory, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_checkpoint(path, Checkpoint("tiny", make_generator(), tiny, ("a", "b", "c", "d", "e")))
    loaded = load_checkpoint(path).vae
    assert isinstance(loaded, AutoencoderTiny)
    assert not loaded.training
    latents = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(Decoder(loaded)(latents), Decoder(tiny)(latents))
    assert vae_sha256(loaded) == vae_sha256(tiny)
    with pytest.raises(CheckpointError, match="no posterior"):
        open_vae(path)


def test_scale_of_a_tiny_decoder_belongs_to_its_identity(tiny: AutoencoderTiny) -> None:
    other = AutoencoderTiny.from_config(dict(tiny.config), scaling_factor=0.5)
    other.load_state_dict(tiny.state_dict())
    assert vae_sha256(other) != vae_sha256(tiny)
