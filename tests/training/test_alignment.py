"""A run with a teacher: whose photographs, whose gradients, and that it resumes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cat_serve.errors import DataError, InvalidInput
from cat_serve.model.generator import Generator
from training import representation
from training.config import TrainConfig
from training.data import Latents
from training.discriminator import Discriminator
from training.fashion_mnist import load_split
from training.folder import ImageFolder
from training.loop import Run
from training.objective import Objective
from training.photographs import open_photographs
from training.prepare import prepare
from training.representation import Alignment, Representation
from training.sources import fashion_mnist
from training.streams import shuffled_indices
from training.teacher import Features


@dataclass
class PixelTeacher:
    """Describes an image by its own pixels: quick, and easy to check."""

    name: str = "pixels"
    width: int = 3

    def __call__(self, images: Tensor) -> Features:
        small = functional.avg_pool2d(images, images.shape[-1] // 4)
        return Features(images.mean(dim=(2, 3)), small.flatten(2).transpose(1, 2), 4)


@pytest.fixture(scope="module")
def fashion_latents(
    vae_folder: Path, idx_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Latents:
    out = tmp_path_factory.mktemp("data") / "fashion"
    prepare(vae_folder, fashion_mnist(idx_folder), out)
    return Latents(out)


@pytest.fixture
def pixel_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        representation, "open_teacher", lambda name, weights, device: PixelTeacher()
    )


def make_objective(config: TrainConfig) -> Objective:
    alignment = Alignment(PixelTeacher(), config.discriminator.width, config.representation)
    generator, discriminator = Generator(config.generator), Discriminator(config.discriminator)
    return Objective(generator, discriminator, config, alignment)


def test_photograph_i_is_that_of_latent_i(fashion_latents: Latents, idx_folder: Path) -> None:
    photographs = open_photographs(fashion_latents, idx_folder)
    indices = torch.tensor([5, 0, 5, 23])
    batch = photographs.batch(indices)
    assert batch.shape == (4, 3, 32, 32)
    raw = load_split("train", idx_folder)[0][indices.numpy()]
    expected = np.pad(raw, ((0, 0), (2, 2), (2, 2))) / 127.5 - 1
    assert np.allclose(batch[:, 1].numpy(), expected, atol=1e-6)


def test_photographs_of_other_data_are_refused(latents: Latents, idx_folder: Path) -> None:
    with pytest.raises(DataError, match="cannot be opened again"):
        open_photographs(latents, idx_folder)


def test_alignment_adds_its_weighted_loss_and_reaches_the_discriminator(
    make_config: Callable[..., TrainConfig],
) -> None:
    options = Representation("pixels", weight=0.7, projector_width=8)
    objective = make_objective(make_config(representation=options))
    x_real, y = torch.randn(8, 8, 8, 8), torch.arange(8)
    photographs = torch.rand(8, 3, 32, 32) * 2 - 1

    def step(given: Objective) -> dict[str, Tensor]:
        rng = torch.Generator().manual_seed(1)
        return given.discriminator_step(x_real, y, rng, photographs=photographs)

    losses = step(objective)
    without = step(Objective(objective.generator, objective.discriminator, objective.config, None))
    added = (losses["d_total"] - without["d_total"]).detach()
    assert float(added) == pytest.approx(0.7 * float(losses["repa"].detach()), abs=1e-5)
    losses["repa"].backward()
    assert objective.alignment is not None
    assert all(p.grad is not None for p in objective.alignment.projector.parameters())
    assert objective.discriminator.patch_embedding.weight.grad is not None
    assert all(p.grad is None for p in objective.generator.parameters())


def test_a_teacher_without_photographs_is_refused(make_config: Callable[..., TrainConfig]) -> None:
    objective = make_objective(make_config(representation=Representation("pixels")))
    with pytest.raises(InvalidInput, match="photographs"):
        objective.discriminator_step(torch.randn(4, 8, 8, 8), torch.arange(4), torch.Generator())


@pytest.mark.usefixtures("pixel_teacher")
def test_an_aligned_run_trains_its_projector_and_resumes_bit_for_bit(
    make_config: Callable[..., TrainConfig],
    fashion_latents: Latents,
    vae_folder: Path,
    idx_folder: Path,
    tmp_path: Path,
) -> None:
    options = Representation("pixels", projector_width=8)

    def run(folder: str, total_nimg: int) -> Run:
        config = make_config(representation=options, total_nimg=total_nimg)
        return Run(config, fashion_latents, vae_folder, tmp_path / folder, idx_folder)

    whole = run("whole", 32)
    assert whole.alignment is not None
    before = whole.alignment.projector.layers[0].weight.clone()
    whole.train(snapshot_nimg=100, log_nimg=8)
    assert not torch.equal(before, whole.alignment.projector.layers[0].weight)

    run("cut", 16).train(snapshot_nimg=100, log_nimg=8)
    resumed = run("cut", 32)
    assert resumed.nimg == 16
    resumed.train(snapshot_nimg=100, log_nimg=8)
    expected, got = whole.critic.state_dict(), resumed.critic.state_dict()
    assert expected.keys() == got.keys()
    assert any(key.startswith("projector.") for key in got)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.usefixtures("pixel_teacher")
def test_teacher_looks_at_the_images_of_a_folder(
    make_config: Callable[..., TrainConfig],
    write_images: Callable[..., Path],
    vae_folder: Path,
    tmp_path: Path,
) -> None:
    root = write_images(*(f"{label}/{number}.png" for label in "ab" for number in range(8)))
    source = ImageFolder(root, 32)
    prepare(vae_folder, source, tmp_path / "data")
    options = Representation("pixels", projector_width=8)
    config = make_config(representation=options, total_nimg=8).fitted(2, 8, 8)
    run = Run(config, Latents(tmp_path / "data"), vae_folder, tmp_path / "run")
    seen: list[Tensor] = []
    assert run.alignment is not None
    teacher = run.alignment.teacher
    run.alignment.teacher = lambda images: (seen.append(images), teacher(images))[1]  # type: ignore
    assert run.step()["repa"] > 0
    index = shuffled_indices(config.seed, 16, 0, 8)
    expected = [photograph.pixels for photograph in source.read(index.numpy())]
    drawn_mean = torch.from_numpy(np.stack(expected)).float().mean() / 127.5 - 1  # type: ignore
    assert seen[0].shape == (8, 3, 32, 32)
    assert float(seen[0].mean()) == pytest.approx(float(drawn_mean), abs=0.05)  # moved, mirrored
