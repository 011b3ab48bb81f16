"""The generator's moving average: its memory, and what it copies."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.ema import ema_decay, update_ema


def make_module() -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_buffer("w_avg", torch.randn(4))
    return module.requires_grad_(False)


def test_decay_is_0_999_per_512_images_after_the_ramp_up() -> None:
    assert ema_decay(40_000_000, 512) == pytest.approx(0.999, abs=1e-5)
    assert ema_decay(7_100_000, 512) == ema_decay(70_000_000, 512)  # the ramp ends at 7.1 million


@pytest.mark.parametrize("batch_size", [50, 500, 5000])
def test_half_life_does_not_depend_on_the_batch(batch_size: int) -> None:
    decay = ema_decay(40_000_000, batch_size)
    assert decay ** (355_000 / batch_size) == pytest.approx(0.5, rel=1e-6)


def test_half_life_is_a_twentieth_of_a_short_run() -> None:
    assert ema_decay(100_000, 50) ** (5000 / 50) == pytest.approx(0.5, rel=1e-6)


def test_first_step_forgets_the_initial_weights() -> None:
    assert ema_decay(64, 64) == pytest.approx(0.5**20)
    assert math.isfinite(ema_decay(0, 64))


def test_update_mixes_parameters_and_copies_buffers() -> None:
    ema, model = make_module(), make_module()
    slow = {
        key: 0.9 * ema.state_dict()[key] + 0.1 * value for key, value in model.state_dict().items()
    }
    before = {key: value.clone() for key, value in model.state_dict().items()}
    update_ema(ema, model, decay=0.9)
    torch.testing.assert_close(ema.weight, slow["weight"])
    torch.testing.assert_close(ema.bias, slow["bias"])
    assert torch.equal(ema.w_avg, model.w_avg)
    assert all(torch.equal(model.state_dict()[key], before[key]) for key in before)
