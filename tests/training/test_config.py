"""The schedule of gamma, and presets that are whole."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from cat_serve.errors import InvalidInput
from training.config import PRESETS, TrainConfig, train_preset


def test_gamma_falls_geometrically_and_stays() -> None:
    config = train_preset("fashion-32")
    start, end, span = config.gamma, config.gamma_final, config.gamma_anneal_nimg
    assert end is not None
    assert end < start
    assert config.gamma_at(0) == start
    assert config.gamma_at(span // 2) == pytest.approx(math.sqrt(start * end))
    assert config.gamma_at(span) == pytest.approx(end)
    assert config.gamma_at(10 * span) == pytest.approx(end)


def test_learning_rate_falls_to_a_tenth_at_the_end() -> None:
    config = replace(train_preset("fashion-32"), total_nimg=1000, lr_decay_nimg=400)
    assert [config.lr_factor(n) for n in (0, 600, 800, 1000, 1200)] == pytest.approx(
        [1, 1, 0.55, 0.1, 0.1]
    )
    assert train_preset("cat-m2-256").lr_factor(10**9) == 1


def test_gamma_is_constant_unless_told() -> None:
    config = train_preset("cat-m2-256")
    assert config.gamma_at(0) == config.gamma_at(10**9) == 1.0


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_round_trip_through_json(name: str) -> None:
    config = train_preset(name)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.name == name.lower()
    assert "/" not in name


def test_published_learning_rate_of_h() -> None:
    config = train_preset("cat-h2-256")
    assert config.lr(config.generator.width) == pytest.approx(1.2e-4)
    assert config.total_nimg == 60 * 1_281_167


def test_unknown_preset_names_the_known() -> None:
    with pytest.raises(InvalidInput) as refused:
        train_preset("cat-q2-256")
    assert "fashion-32" in str(refused.value)
