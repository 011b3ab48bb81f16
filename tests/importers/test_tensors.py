"""What importers share: every tensor is held to account, and flags that mean nothing are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from cat_serve.cli import main
from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.importers import FAMILIES, ImportOptions, convert
from cat_serve.importers.tensors import (
    Tensors,
    heads_of,
    patch_weights,
    scale_before_shift,
    sided,
    time_features,
)
from cat_serve.model.layers import patchify

FILE = Path("published.pth")


def of(**state: torch.Tensor) -> Tensors:
    return Tensors({k.replace("__", "."): v for k, v in state.items()}, FILE, "X's generator")


def test_everything_must_be_taken_or_dropped() -> None:
    tensors = of(a=torch.ones(2), b__c=torch.ones(1), b__d=torch.ones(1), rest=torch.ones(1))
    tensors.take("a", 2)
    tensors.drop("b.")
    with pytest.raises(CheckpointError, match=r"published\.pth is not X's generator.*rest"):
        tensors.finish()
    tensors.take("rest")
    tensors.finish()


@pytest.mark.parametrize(
    ("key", "shape", "said"),
    [("a", (3,), r"a has shape \(2,\), not \(3,\)"), ("z", (), "no tensor z"), ("bad", (1,), "bad is not finite")],
)  # fmt: skip
def test_another_tensor_is_refused_by_name(key: str, shape: tuple[int, ...], said: str) -> None:
    tensors = of(a=torch.ones(2), bad=torch.tensor([math.inf]))
    with pytest.raises(CheckpointError, match=said):
        tensors.take(key, *shape)


def test_shapes_alone_do_for_a_layout() -> None:
    tensors = of(a=torch.empty(2, 3, device="meta"))
    assert tensors.take("a", 2, 3).is_meta
    assert tensors.shape("a", 2) == (2, 3)
    with pytest.raises(CheckpointError, match="not 1 dimensions"):
        tensors.shape("a", 1)


def test_blocks_are_numbered_without_a_gap() -> None:
    one = torch.ones(1)
    assert of(blocks__0__x=one, blocks__1__x=one, blocks__1__y=one).count("blocks.") == 2
    for broken in (of(blocks__0__x=one, blocks__2__x=one), of(other=one)):
        with pytest.raises(CheckpointError, match=r"its blocks\.\*"):
            broken.count("blocks.")


def test_time_features_are_cosines_then_sines() -> None:
    found = time_features(250.0)
    assert found.shape == (256,)
    for i in (0, 1, 64, 127):
        angle = 250.0 * 10_000.0 ** (-i / 128)
        assert found[i].item() == pytest.approx(math.cos(angle), abs=3e-5)
        assert found[128 + i].item() == pytest.approx(math.sin(angle), abs=3e-5)


def test_a_convolution_on_patches_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    weight, grid = torch.randn(5, 3, 2, 2), torch.randn(2, 3, 6, 6)
    expected = torch.nn.functional.conv2d(grid, weight, stride=2).flatten(2).transpose(1, 2)
    made = patchify(grid, 2) @ patch_weights(weight).T
    torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-5)


def test_modulation_rows_change_places() -> None:
    rows = torch.arange(12).reshape(12, 1)
    made = scale_before_shift(rows, (1, 0, 2, 4, 3, 5)).flatten().tolist()
    assert made == [2, 3, 0, 1, 4, 5, 8, 9, 6, 7, 10, 11]


def test_heads_are_those_of_published_widths_or_must_be_given() -> None:
    assert [heads_of(width, None) for width in (768, 1024, 1152)] == [12, 16, 16]
    assert heads_of(1152, 8) == 8
    with pytest.raises(InvalidInput, match="--heads"):
        heads_of(48, None)
    with pytest.raises(InvalidInput, match="5 heads"):
        heads_of(768, 5)


def test_tokens_that_are_no_square_are_refused() -> None:
    assert sided(256, of()) == 16
    with pytest.raises(CheckpointError, match="no square"):
        sided(250, of())


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("advflow", {"omega": 2.0}, r"--omega means nothing for AdvFlow"),
        ("gat", {"heads": 4}, r"--heads means nothing for GAT"),
        ("imf", {"latent_stats": FILE}, r"--latent-stats means nothing for iMF"),
        ("pmf", {"repeats": 2}, r"it takes --omega, --t-min, --t-max, --noise-scale"),
    ],
)
def test_flags_of_other_families_are_refused(family: str, options: dict, said: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        convert(family, FILE, ImportOptions(**options))
    assert said in str(refused.value)


def test_list_shows_every_family_with_figure_licence_and_place(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["import", "--list"]) == 0
    header, *rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert header[:3] == ["family", "fid_as_published", "licence"]
    assert [row[0] for row in rows] == list(FAMILIES)
    assert len(rows) == 9
    for row in rows:
        assert all(row), row
        assert len(row) == len(header)
