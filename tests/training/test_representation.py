"""Representation alignment against closed forms; the teacher's images against the latents."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from training.augment import Draw, augment, draw, resize
from training.discriminator import Discriminator, DiscriminatorConfig
from training.representation import (
    Projector,
    augment_teacher_images,
    full_resolution_tokens,
    representation_loss,
)
from training.teacher import EfficientNetLite0, Features

WIDTH = 24


def make_features(side: int, batch: int = 3) -> Features:
    return Features(torch.randn(batch, WIDTH), torch.randn(batch, side * side, WIDTH), side)


def joined(features: Features) -> Tensor:
    """The tokens that would be predicted perfectly: [B, 1 + N, W]."""
    return torch.cat([features.cls.unsqueeze(1), features.patches], dim=1)


def orthogonal_to(tokens: Tensor) -> Tensor:
    """Turn every pair of neighbouring values by a right angle."""
    pairs = tokens.unflatten(-1, (-1, 2))
    return torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)


# --- loss ------------------------------------------------------------------------------------


def test_loss_is_0_for_equal_1_for_orthogonal_2_for_opposite_directions() -> None:
    features = make_features(4)
    target = joined(features)
    lengths = 0.1 + torch.rand(3, 17, 1)  # only directions count
    for predicted, expected in ((target, 0.0), (orthogonal_to(target), 2.0), (-target, 4.0)):
        loss = representation_loss(predicted * lengths, features)
        assert loss.shape == ()
        assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_cls_weighs_as_much_as_all_patches_together() -> None:
    features = make_features(4)
    wrong_cls, wrong_patch = joined(features), joined(features)
    wrong_cls[:, 0] *= -1
    wrong_patch[:, 5] *= -1
    assert float(representation_loss(wrong_cls, features)) == pytest.approx(2.0, abs=1e-5)
    assert float(representation_loss(wrong_patch, features)) == pytest.approx(2 / 16, abs=1e-5)


def test_loss_equals_the_slow_sum() -> None:
    features = make_features(2)
    projected = torch.randn(3, 5, WIDTH)

    def distance(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        lengths = (sum(x * x for x in v) ** 0.5 for v in (a, b))
        return 1 - dot / next(lengths) / next(lengths)

    slow = 0.0
    for b in range(3):
        slow += distance(projected[b, 0].tolist(), features.cls[b].tolist())
        for n in range(4):
            patches = projected[b, 1 + n].tolist(), features.patches[b, n].tolist()
            slow += distance(*patches) / 4
    assert float(representation_loss(projected, features)) == pytest.approx(slow / 3, rel=1e-5)


def on_grid(patches: Tensor, side: int) -> Tensor:
    return patches.transpose(1, 2).unflatten(2, (side, side))


def test_larger_teacher_grid_is_averaged_over_areas() -> None:
    features = make_features(8)
    grid = resize(on_grid(features.patches, 8), 4)  # means over 2 x 2
    expected = Features(features.cls, grid.flatten(2).transpose(1, 2), 4)
    assert float(representation_loss(joined(expected), features)) == pytest.approx(0, abs=1e-5)


def test_teacher_grid_of_any_size_is_resized() -> None:
    """A feature that does not depend on the place stays; one that grows by row and column keeps its sense."""
    for side in (3, 5, 7, 16):
        cells = (torch.arange(side) + 0.5) / side
        grid = torch.stack([cells[:, None].expand(side, side), cells.expand(side, side)])
        patches = grid.flatten(1).T.expand(1, -1, -1)
        features = Features(torch.ones(1, 2), patches, side)
        same = (torch.arange(4) + 0.5) / 4
        wanted = torch.stack([same[:, None].expand(4, 4), same.expand(4, 4)]).flatten(1).T
        target = torch.cat([torch.ones(1, 2), wanted]).unsqueeze(0)
        assert float(representation_loss(target, features)) < 0.01
        transposed = torch.cat([torch.ones(1, 2), wanted.flip(1)]).unsqueeze(0)
        assert float(representation_loss(transposed, features)) > 0.05


@pytest.mark.parametrize("shape", [(3, 17, WIDTH + 1), (2, 17, WIDTH), (3, 16, WIDTH), (3, 17, 1)])
def test_tokens_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="do not fit"):
        representation_loss(torch.randn(shape), make_features(4))


# --- tokens ----------------------------------------------------------------------------------


@pytest.fixture
def discriminator() -> Discriminator:
    return Discriminator(
        DiscriminatorConfig(
            depth=2,
            width=32,
            heads=2,
            label_dim=16,
            latent_size=8,
            latent_channels=4,
            num_classes=10,
        )
    ).requires_grad_(True)


@pytest.fixture
def scales(discriminator: Discriminator) -> list[Tensor]:
    return [torch.randn(2, 4, side, side) for side in discriminator.config.scales]


def test_full_resolution_tokens_see_the_full_resolution_alone(
    discriminator: Discriminator, scales: list[Tensor]
) -> None:
    def chosen(images: list[Tensor]) -> Tensor:
        return full_resolution_tokens(discriminator, discriminator.tokens(images))

    before = chosen(scales)
    assert before.shape == (2, 1 + 4 * 4, 32)
    others = [torch.randn_like(x) for x in scales[:-1]]
    torch.testing.assert_close(chosen([*others, scales[-1]]), before)
    after = chosen([*scales[:-1], torch.randn_like(scales[-1])])
    assert ((after - before).abs().amax(dim=-1) > 1e-3).all()  # all of them, CLS and patches


def test_first_chosen_token_is_the_cls_token_of_the_last_logit(
    discriminator: Discriminator, scales: list[Tensor]
) -> None:
    tokens = discriminator.tokens(scales)
    chosen = full_resolution_tokens(discriminator, tokens)
    assert torch.equal(chosen[:, 0], tokens[:, discriminator.cls_index[-1]])


def test_chosen_patches_go_row_by_row(discriminator: Discriminator, scales: list[Tensor]) -> None:
    """What changes in one latent patch changes that patch's token most."""
    before = full_resolution_tokens(discriminator, discriminator.tokens(scales))
    for row, column in ((0, 3), (2, 1), (3, 0)):
        full = scales[-1].clone()
        full[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += 3.0
        tokens = discriminator.tokens([*scales[:-1], full])
        change = (full_resolution_tokens(discriminator, tokens) - before).square().sum(dim=-1)
        assert change.argmax(dim=1).tolist() == [1 + 4 * row + column] * 2


# --- projector and gradients -----------------------------------------------------------------


def test_projector_is_three_linear_layers() -> None:
    projector = Projector(8, 5, hidden=16)
    tokens = torch.randn(2, 17, 8)
    first, _, second, _, third = projector.layers
    silu = torch.nn.functional.silu
    expected = third(silu(second(silu(first(tokens)))))
    torch.testing.assert_close(projector(tokens), expected)
    assert expected.shape == (2, 17, 5)
    biases = [parameter for name, parameter in projector.named_parameters() if "bias" in name]
    assert len(biases) == 3
    assert all(not bias.any() for bias in biases)


def test_gradient_reaches_projector_and_trunk_only(
    discriminator: Discriminator, scales: list[Tensor]
) -> None:
    teacher = EfficientNetLite0()
    projector = Projector(32, teacher.width, hidden=16)
    photographs = (2 * torch.rand(2, 3, 32, 32) - 1).requires_grad_(True)
    features = teacher(photographs)
    tokens = full_resolution_tokens(discriminator, discriminator.tokens(scales))
    representation_loss(projector(tokens), features).backward()
    for name, parameter in projector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    for name, parameter in discriminator.named_parameters():
        judges = name.startswith(("head", "label_embedding"))  # what only makes logits
        assert (parameter.grad is None) == judges, name
        if not judges:
            assert parameter.grad is not None
            assert parameter.grad.any(), name
    for per_scale in (discriminator.cls, discriminator.scale_embedding):
        assert per_scale.grad is not None
        assert per_scale.grad.any(dim=1).tolist() == [False, False, True]
    assert photographs.grad is None
    assert all(parameter.grad is None for parameter in teacher.network.parameters())


def test_descending_the_loss_aligns_the_tokens(
    discriminator: Discriminator, scales: list[Tensor]
) -> None:
    features = make_features(4, batch=2)
    projector = Projector(32, WIDTH, hidden=64)
    parameters = [*discriminator.parameters(), *projector.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, betas=(0.0, 0.99))
    losses = []
    for _ in range(60):
        tokens = full_resolution_tokens(discriminator, discriminator.tokens(scales))
        loss = representation_loss(projector(tokens), features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(2.0, abs=0.5)  # unrelated at first
    assert losses[-1] < 0.1


# --- the teacher's images --------------------------------------------------------------------


def moving_only(batch: int, side: int, **changes: Tensor) -> Draw:
    """Change neither colours nor, by a square beyond the corner, any cell."""
    zeros, outside = torch.zeros(batch, dtype=torch.int64), torch.full((batch,), 2 * side)
    neutral = Draw(
        torch.zeros(batch), torch.ones(batch), torch.ones(batch),
        zeros, zeros, outside, outside, torch.zeros(batch, dtype=torch.bool),
    )  # fmt: skip
    return replace(neutral, **changes)


def upsampled(latents: Tensor, factor: int) -> Tensor:
    """Blow each cell up to a square of pixels: [B, C, h, w] -> [B, C, h * factor, w * factor]."""
    return latents.repeat_interleave(factor, dim=-1).repeat_interleave(factor, dim=-2)


@pytest.mark.parametrize(("side", "factor"), [(8, 4), (8, 1), (16, 4), (32, 8), (32, 2)])
def test_teacher_images_move_as_their_latents(side: int, factor: int) -> None:
    """Every corner of the shifts' range and the middle, each mirrored and not."""
    reach = side // 8
    cases = list(itertools.product((-reach, 0, reach), (-reach, 0, reach), (False, True)))
    row, column, flip = (torch.tensor(values) for values in zip(*cases, strict=True))
    drawn = moving_only(len(cases), side, shift_row=row, shift_column=column, flip=flip)
    latents = torch.randn(len(cases), 3, side, side)
    moved_latents = augment(latents.unsqueeze(1), drawn)[:, 0]
    moved_images = augment_teacher_images(upsampled(latents, factor), drawn, side)
    torch.testing.assert_close(resize(moved_images, side), moved_latents)
    torch.testing.assert_close(moved_images, upsampled(moved_latents, factor))


def test_one_latent_cell_is_many_pixels() -> None:
    """A dot goes down by one cell and to the left by one: four pixels each, not a quarter."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 10, 20] = 1.0
    one = torch.ones(1, dtype=torch.int64)
    drawn = moving_only(1, 8, shift_row=one, shift_column=-one)
    moved = augment_teacher_images(image, drawn, 8)
    assert moved[0, 0].nonzero().tolist() == [[14, 16]]


def test_images_are_mirrored_before_they_are_moved() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 0, 0] = 1.0
    drawn = moving_only(
        1, 8, shift_column=-torch.ones(1, dtype=torch.int64), flip=torch.ones(1, dtype=torch.bool)
    )
    moved = augment_teacher_images(image, drawn, 8)
    assert moved[0, 0].nonzero().tolist() == [[0, 31 - 4]]


def test_colour_and_cutout_do_not_touch_teacher_images() -> None:
    drawn = draw(64, 8, torch.Generator().manual_seed(0))
    images = 2 * torch.rand(64, 3, 32, 32) - 1
    moved = augment_teacher_images(images, drawn, 8)
    kept = moving_only(
        64, 8, shift_row=drawn.shift_row, shift_column=drawn.shift_column, flip=drawn.flip
    )
    assert torch.equal(moved, augment_teacher_images(images, kept, 8))
    still = ~drawn.flip & (drawn.shift_row == 0) & (drawn.shift_column == 0)
    assert still.any()
    assert torch.equal(moved[still], images[still])


def test_what_comes_in_is_grey() -> None:
    drawn = moving_only(1, 8, shift_row=torch.ones(1, dtype=torch.int64))
    moved = augment_teacher_images(torch.full((1, 3, 32, 32), -1.0), drawn, 8)
    assert (moved[..., :4, :] == 0).all()
    assert (moved[..., 4:, :] == -1).all()


@pytest.mark.parametrize("shape", [(1, 3, 28, 28), (1, 3, 4, 4), (1, 3, 16, 32)])
def test_images_that_do_not_fit_the_grid_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="grid of 8"):
        augment_teacher_images(torch.zeros(shape), moving_only(1, 8), 8)
