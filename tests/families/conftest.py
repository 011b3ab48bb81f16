"""What a user has beside a published file: a decoder, names of classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families.specs import Spec

CLASSES = 10
NAMES = "\n".join(f"thing {i}" for i in range(CLASSES))


@pytest.fixture(scope="session")
def names_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("names") / "names.txt"
    path.write_text(NAMES)
    return path


@pytest.fixture(scope="session")
def vae_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Write narrow VAEs of random weights that double a latent's side, one for each number of channels."""
    folders: dict[int, Path] = {}

    def write(channels: int) -> Path:
        from diffusers import AutoencoderKL

        if channels not in folders:
            torch.manual_seed(0)
            folders[channels] = tmp_path_factory.mktemp("vae") / f"narrow-{channels}"
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                block_out_channels=(8, 16),
                latent_channels=channels,
                norm_num_groups=4,
            ).save_pretrained(folders[channels])
        return folders[channels]

    return write


@pytest.fixture
def command(
    tmp_path: Path, names_file: Path, vae_of: Callable[[int], Path]
) -> Callable[..., list[str]]:
    """Return a command line of `cat-serve import` for one kind of file; `vae`: another number of channels."""

    def of(spec: Spec, file: Path, out: Path, vae: int | None = None) -> list[str]:
        line = ["import", spec.family, str(file), "--out", str(out), "--class-names", str(names_file)]  # fmt: skip
        if spec.posterior is not None:
            line += ["--vae", str(vae_of(vae or spec.config.channels))]
        for option, path in spec.beside(tmp_path).items():
            line += ["--" + option.replace("_", "-"), str(path)]
        return [*line, *spec.flags]

    return of
