"""Configuration: scales, presets, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cat_serve.errors import InvalidInput
from cat_serve.model.config import (
    GeneratorConfig,
    generator_preset,
    scale_sizes,
    swiglu_width,
)


@pytest.mark.parametrize(
    ("latent_size", "patch", "scales"),
    [
        (32, 2, (4, 8, 16, 32)),
        (16, 2, (2, 4, 8, 16)),
        (8, 2, (2, 4, 8)),
        (4, 2, (2, 4)),
        (2, 2, (2,)),
        (32, 4, (4, 8, 16, 32)),
        (16, 4, (4, 8, 16)),
        (64, 2, (8, 16, 32, 64)),
    ],
)
def test_scales_halve_down_to_the_patch(
    latent_size: int, patch: int, scales: tuple[int, ...]
) -> None:
    assert scale_sizes(latent_size, patch) == scales


@pytest.mark.parametrize(
    ("size", "depth", "width", "heads"),
    [
        ("S", 12, 384, 6),
        ("B", 12, 768, 12),
        ("M", 24, 768, 12),
        ("L", 24, 1024, 16),
        ("XL", 28, 1152, 16),
        ("H", 32, 1280, 16),
    ],
)
def test_presets_are_the_published_sizes(size: str, depth: int, width: int, heads: int) -> None:
    config = generator_preset(size)
    assert (config.depth, config.width, config.heads) == (depth, width, heads)
    assert (config.patch, config.latent_size, config.latent_channels) == (2, 32, 4)
    assert (config.num_classes, config.z_dim, config.class_dim) == (1000, 64, 64)
    assert config.modulation == "shift"


def test_swiglu_is_two_thirds_of_a_fourfold_mlp() -> None:
    assert [swiglu_width(width) for width in (384, 768, 1280)] == [1024, 2048, 3413]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"latent_size": 9}, "9"),
        ({"latent_size": 24}, r"scales \(3, 6, 12, 24\)"),
        ({"width": 130}, "130"),
        ({"width": 24, "heads": 4}, "6 channels"),
        ({"depth": 10}, "depth 10"),
        ({"modulation": "both"}, "both"),
        ({"widht": 16}, "widht"),
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        generator_preset("B", **changes)


def test_missing_setting_is_named() -> None:
    with pytest.raises(InvalidInput, match="heads"):
        GeneratorConfig.from_dict({"depth": 4, "width": 16})


def test_unknown_size_lists_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="S, B, M, L, XL, H"):
        generator_preset("XXL")


def test_configuration_survives_json() -> None:
    config = generator_preset("XL", modulation="no_shift", num_classes=7)
    assert GeneratorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_configuration_needs_no_torch() -> None:
    code = "import sys, cat_serve.model.config; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
