"""Small generators and VAEs that differ from the real ones in size alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL

from cat_serve.model.config import GeneratorConfig
from cat_serve.model.generator import Generator
from training.train_vae import VaeTraining, build_vae

GeneratorFactory = Callable[..., Generator]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Make every draw of a test repeatable."""
    torch.manual_seed(0)


@pytest.fixture
def make_generator() -> GeneratorFactory:
    """Make a seeded generator: a 16 x 16 grid has four stages; modulation is large enough to matter."""

    def make(**changes: object) -> Generator:
        values = {"depth": 4, "width": 16, "heads": 2, "latent_size": 16, "num_classes": 5}
        torch.manual_seed(0)
        generator = Generator(GeneratorConfig.from_dict(values | changes)).eval()
        generator.w_avg.normal_()
        with torch.no_grad():
            for parameter in generator.parameters():  # biases start at 0: nothing may hide there
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return generator.requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def small_vae() -> AutoencoderKL:
    torch.manual_seed(0)
    vae = build_vae(VaeTraining(widths=(8, 8)), image_size=32)
    vae.register_to_config(scaling_factor=0.6)
    return vae.eval().requires_grad_(False)
