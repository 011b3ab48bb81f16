"""Both steps of the objective: what they are made of, and who gets gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cat_serve.model.generator import Generator
from training.config import TrainConfig
from training.discriminator import Discriminator
from training.losses import Consistency, add_penalty_noise, label_loss
from training.objective import Objective
from training.presets import train_preset
from training.share import Share
from training.streams import stream_at

ConfigFactory = Callable[..., TrainConfig]


def build(config: TrainConfig) -> Objective:
    torch.manual_seed(0)
    return Objective(Generator(config.generator), Discriminator(config.discriminator), config)


@pytest.fixture
def objective(make_config: ConfigFactory) -> Objective:
    """An objective whose logits are far enough from 0 that a swapped sign shows."""
    made = build(make_config())
    with torch.no_grad():
        made.discriminator.head.weight.mul_(30)
    return made


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 8, 8, 8), torch.tensor([0, 1, 2, 3, 3, 9, 9, 9])


def have_gradients(module: nn.Module) -> Iterator[bool]:
    return (parameter.grad is not None for parameter in module.parameters())


def test_discriminator_step_leaves_the_generator_alone(
    objective: Objective, batch: tuple[Tensor, Tensor]
) -> None:
    before = objective.generator.w_avg.clone()
    objective.discriminator_step(*batch, stream_at(0, "d", 0))["d_total"].backward()
    assert not any(have_gradients(objective.generator))
    assert all(have_gradients(objective.discriminator))
    assert torch.equal(objective.generator.w_avg, before)


def test_generator_step_leaves_the_discriminator_alone(
    objective: Objective, batch: tuple[Tensor, Tensor]
) -> None:
    objective.generator_step(*batch, stream_at(0, "g", 0))["g_total"].backward()
    assert not any(have_gradients(objective.discriminator))
    assert all(have_gradients(objective.generator))
    assert all(parameter.requires_grad for parameter in objective.discriminator.parameters())


def test_discriminator_step_equals_four_separate_judgements(
    objective: Objective, batch: tuple[Tensor, Tensor]
) -> None:
    x_real, y = batch
    losses = objective.discriminator_step(x_real, y, stream_at(0, "d", 0))

    rng = stream_at(0, "d", 0)  # the same draws in the same order
    z = torch.randn(8, 64, generator=rng)
    judge = objective.discriminator
    real_images = objective.judged(x_real[:, None], objective.draw(Share.whole(len(y)), rng))
    stages = objective.generator(z, y, stages=True)
    fake_images = objective.judged(stages, objective.draw(Share.whole(len(y)), rng))
    fourth = [0, 4]
    noised_real = add_penalty_noise([x[fourth] for x in real_images], rng)
    noised_fake = add_penalty_noise([x[fourth] for x in fake_images], rng)
    real, fake = judge(real_images, y), judge(fake_images, y)
    adversarial = -nn.functional.logsigmoid(real - fake).mean()
    r1, r2 = (
        (((clean[fourth].sum(1) - judge(noised, y[fourth]).sum(1)) / 0.01) ** 2).mean()
        for clean, noised in ((real, noised_real), (fake, noised_fake))
    )
    torch.testing.assert_close(losses["d_adv"], adversarial)
    torch.testing.assert_close(losses["margin"], (real - fake).mean())
    # The division by 0.01 amplifies the rounding of another batch size.
    torch.testing.assert_close(losses["r1"], r1, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(losses["r2"], r2, rtol=1e-2, atol=1e-4)
    expected = losses["d_adv"] + 0.1 / 2 * (losses["r1"] + losses["r2"])  # gamma is 0.1
    torch.testing.assert_close(losses["d_total"], expected)
    (mine,) = torch.autograd.grad(losses["d_total"], judge.head.weight)
    (slow,) = torch.autograd.grad(adversarial + 0.1 / 2 * (r1 + r2), judge.head.weight)
    assert float((mine - slow).norm() / slow.norm()) < 0.02


def test_generator_step_equals_separate_judgements(
    objective: Objective, batch: tuple[Tensor, Tensor]
) -> None:
    x_real, y = batch
    losses = objective.generator_step(x_real, y, stream_at(0, "g", 0))

    rng = stream_at(0, "g", 0)
    z = torch.randn(8, 64, generator=rng)
    stages = objective.generator(z, y, stages=True)
    real_images = objective.judged(x_real[:, None], objective.draw(Share.whole(len(y)), rng))
    real = objective.discriminator(real_images, y)
    fake = objective.discriminator(
        objective.judged(stages, objective.draw(Share.whole(len(y)), rng)), y
    )
    distances = [(stages[:, k] - stages[:, 2]).square().mean() for k in range(2)]
    torch.testing.assert_close(losses["g_adv"], -nn.functional.logsigmoid(fake - real).mean())
    torch.testing.assert_close(losses["consistency"], (distances[0] / 2 + distances[1]) / 2)
    expected = losses["g_adv"] + 0.1 * losses["consistency"]  # lambda
    torch.testing.assert_close(losses["g_total"], expected)
    weight = objective.generator.heads[0].project.weight
    slow = -nn.functional.logsigmoid(fake - real.detach()).mean()
    slow = slow + 0.1 * (distances[0] / 2 + distances[1]) / 2
    gradients = [torch.autograd.grad(total, weight)[0] for total in (losses["g_total"], slow)]
    torch.testing.assert_close(*gradients)


def test_lambda_zero_is_the_control_without_consistency(
    make_config: ConfigFactory, batch: tuple[Tensor, Tensor]
) -> None:
    objective = build(make_config(consistency=Consistency(weight=0.0)))
    losses = objective.generator_step(*batch, stream_at(0, "g", 0))
    assert torch.equal(losses["g_total"], losses["g_adv"])
    assert losses["consistency"] > 0  # still measured
    losses["g_total"].backward()
    assert all(have_gradients(objective.generator))


def test_aggregated_control_learns(
    make_config: ConfigFactory, batch: tuple[Tensor, Tensor]
) -> None:
    config = make_config(consistency=Consistency(weight=0.0))
    aggregated = replace(config.discriminator, attention="aggregated")
    objective = build(replace(config, discriminator=aggregated))
    objective.discriminator_step(*batch, stream_at(0, "d", 0))["d_total"].backward()
    assert all(have_gradients(objective.discriminator))


def test_generator_step_moves_w_avg_once(
    objective: Objective, batch: tuple[Tensor, Tensor]
) -> None:
    x_real, y = batch
    objective.generator_step(x_real, y, stream_at(0, "g", 0))
    w = objective.generator.mapping(torch.randn(8, 64, generator=stream_at(0, "g", 0)), y)
    expected = torch.zeros(10, 16)
    for class_id, rows in ((0, [0]), (1, [1]), (2, [2]), (3, [3, 4]), (9, [5, 6, 7])):
        expected[class_id] = 0.005 * w[rows].mean(0)  # from 0
    torch.testing.assert_close(objective.generator.w_avg, expected)


def test_initial_losses_are_near_ln_2(batch: tuple[Tensor, Tensor]) -> None:
    objective = build(train_preset("fashion-32"))
    d_losses = objective.discriminator_step(*batch, stream_at(0, "d", 0))
    g_losses = objective.generator_step(*batch, stream_at(0, "g", 0))
    assert d_losses["d_adv"].item() == pytest.approx(math.log(2), abs=0.05)
    assert g_losses["g_adv"].item() == pytest.approx(math.log(2), abs=0.05)


def test_label_weight_adds_the_cross_entropy_of_the_real_images(
    make_config: ConfigFactory, batch: tuple[Tensor, Tensor]
) -> None:
    rng = (0, "d", 0)
    without = build(make_config()).discriminator_step(*batch, stream_at(*rng))
    objective = build(make_config(label_weight=0.5))
    losses = objective.discriminator_step(*batch, stream_at(*rng))
    assert "label" not in without
    torch.testing.assert_close(losses["d_total"], without["d_total"] + 0.5 * losses["label"])

    x_real, y = batch  # the same draws again: z, then the augmentation of the real images
    again = stream_at(*rng)
    everyone = Share.whole(len(y))
    objective.draw_z(everyone, again)
    images = objective.judged(x_real.unsqueeze(1), objective.draw(everyone, again))
    every = objective.discriminator.class_logits(objective.discriminator.tokens(images))
    torch.testing.assert_close(losses["label"], label_loss(every, y))


def test_penalty_settings_reach_the_penalty(
    make_config: ConfigFactory, batch: tuple[Tensor, Tensor]
) -> None:
    """For a smooth D the finite difference hardly depends on sigma; how many samples it sees does matter."""

    def r1(**changes: object) -> float:
        objective = build(make_config(**changes))
        return float(objective.discriminator_step(*batch, stream_at(0, "d", 0))["r1"].detach())

    usual = r1()
    assert r1(penalty_sigma=0.012) != usual
    assert r1(penalty_sigma=0.012) == pytest.approx(usual, rel=0.1)
    assert r1(penalty_every=8) != pytest.approx(usual, rel=1e-3)
