"""Schedules, stored configurations, and presets that are whole and meet their data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from cat_serve.errors import DataError, InvalidInput
from training.config import TrainConfig
from training.data import Index
from training.losses import Consistency
from training.presets import PRESETS, gamma_for, preset_for_data, train_preset


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


# --- stored configurations -----------------------------------------------------------------------


def stored(name: str = "fashion-32") -> dict[str, Any]:
    return json.loads(json.dumps(train_preset(name).to_dict()))


NEWER = (
    "augmentations",
    "penalty_sigma",
    "penalty_every",
    "label_weight",
    "seed",
    "consistency",
    "lr_decay_nimg",
)


def test_configuration_of_an_older_checkpoint_has_the_defaults() -> None:
    older = stored("cat-m2-256")
    for key in NEWER:
        del older[key]
    del older["discriminator"]["attention"], older["generator"]["modulation"]
    assert TrainConfig.from_dict(older) == train_preset("cat-m2-256")


@pytest.mark.parametrize(
    "part", [None, "generator", "discriminator", "consistency", "representation"]
)
def test_unknown_keys_are_errors(part: str | None) -> None:
    values = stored()
    (values[part] if part else values)["gama"] = 1.0
    with pytest.raises(InvalidInput, match="gama"):
        TrainConfig.from_dict(values)


def test_missing_keys_without_a_default_are_errors() -> None:
    values = stored()
    del values["name"]
    with pytest.raises(InvalidInput, match="Missing settings of TrainConfig: name"):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "cat/m2"}, {"name": "Cat"}, {"resize": "nearest"}, {"translation_fill": "white"},
        {"augmentations": ("color",)}, {"gamma": -1.0}, {"gamma_final": 0.0}, {"base_lr": 0.0},
        {"flip_probability": 1.5}, {"penalty_sigma": 0.0}, {"penalty_every": 0},
        {"label_weight": -0.5},
    ],
)  # fmt: skip
def test_settings_no_run_can_use_are_refused(changes: dict[str, Any]) -> None:
    (value,) = changes.values()
    shown = value[0] if isinstance(value, tuple) else value
    with pytest.raises(InvalidInput, match=str(shown)):
        replace(train_preset("fashion-32"), **changes)


def test_unknown_omegas_are_refused() -> None:
    with pytest.raises(InvalidInput, match="'linear'"):
        Consistency(omegas="linear")  # type: ignore[arg-type]


# --- presets and data ----------------------------------------------------------------------------


def index_of(classes: int, channels: int, grid: int) -> Index:
    names = tuple(f"class {number}" for number in range(classes))
    scale = (0.0,) * channels, (1.0,) * channels
    return Index(
        "hash", *scale, names, channels, grid, classes, ("latents-00000.npy",), {}, "print"
    )


def test_data_of_the_presets_shape_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert preset_for_data("fashion-32", index_of(10, 8, 8)) == train_preset("fashion-32")
    assert preset_for_data("cat-s2-256", index_of(1000, 4, 32)) == train_preset("cat-s2-256")
    assert preset_for_data("folder", index_of(10, 4, 8)) == train_preset("folder")
    assert not capsys.readouterr().err


def test_imagenet_presets_take_classes_and_channels_of_the_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = preset_for_data("cat-s2-256", index_of(5, 16, 32))
    assert (config.generator.num_classes, config.discriminator.num_classes) == (5, 5)
    assert (config.generator.latent_channels, config.generator.latent_size) == (16, 32)
    assert config.gamma == 1.0
    assert "cat-s2-256 follows the data: 5 classes, 16 channels" in capsys.readouterr().err


@pytest.mark.parametrize(("grid", "gamma", "stages"), [(8, 0.01, 3), (16, 0.1, 4), (32, 1.0, 4)])
def test_folder_takes_everything_of_the_data(grid: int, gamma: float, stages: int) -> None:
    config = preset_for_data("folder", index_of(3, 4, grid))
    assert (config.generator.latent_size, config.generator.stages) == (grid, stages)
    assert (config.gamma, config.gamma_final) == (pytest.approx(gamma), pytest.approx(gamma / 10))
    assert gamma_for(grid) == pytest.approx(gamma)


@pytest.mark.parametrize(("name", "grid"), [("fashion-32", 16), ("cat-s2-256", 16)])
def test_grid_belongs_to_its_preset(name: str, grid: int) -> None:
    with pytest.raises(DataError, match=rf"\(10, 4, {grid}\), {name} wants"):
        preset_for_data(name, index_of(10, 4, grid))


def test_fashion_takes_no_other_classes() -> None:
    with pytest.raises(DataError, match=r"\(9, 8, 8\), fashion-32 wants \(10, 8, 8\)"):
        preset_for_data("fashion-32", index_of(9, 8, 8))
