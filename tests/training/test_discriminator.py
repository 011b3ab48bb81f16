"""The discriminator against a slow one that looks at each scale alone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cat_serve.errors import InvalidInput
from cat_serve.model.layers import patchify, rope_angles, sincos_positions
from training.discriminator import Discriminator, DiscriminatorConfig, LabelEmbedding

CONFIG = DiscriminatorConfig(
    depth=2, width=16, heads=2, label_dim=12, latent_size=16, latent_channels=3, num_classes=5
)


def make_discriminator(attention: str = "scale_wise") -> Discriminator:
    """Make one with the same random weights for every attention, none of them neutral."""
    torch.manual_seed(0)
    discriminator = Discriminator(replace(CONFIG, attention=attention)).requires_grad_(False)
    for parameter in discriminator.parameters():
        if parameter.dim() < 2 or len(parameter) == 4:  # scales, biases, CLS, scale embeddings
            parameter.add_(0.3 * torch.randn_like(parameter))
    return discriminator


def draw_images(batch: int = 3) -> list[Tensor]:
    return [torch.randn(batch, 3, side, side) for side in CONFIG.scales]


def norm_slowly(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def rotate_slowly(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate [n, heads, d] as complex numbers by angles [n, d/2]."""
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angles), angles
    ).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2)


def judge_slowly(d: Discriminator, k: int, image: Tensor, class_id: int) -> Tensor:
    """Logit of one scale of one image [C, s, s], from nothing but that scale."""
    side, heads = image.shape[-1] // 2, CONFIG.heads
    patches = d.patch_embedding(patchify(image[None], 2))[0] + sincos_positions(side, 16)
    u = torch.cat([d.cls[k][None], patches + d.scale_embedding[k]])
    angles = torch.cat([torch.zeros(1, 4), rope_angles(side, 8)])  # CLS stays as it is
    for block in d.blocks:
        attention = block.attention
        x = norm_slowly(u, block.attention_norm.weight)
        q, k_, v = (x @ attention.qkv.weight.T + attention.qkv.bias).view(-1, 3, heads, 8).unbind(1)
        q = rotate_slowly(norm_slowly(q, attention.q_norm.weight), angles)
        k_ = rotate_slowly(norm_slowly(k_, attention.k_norm.weight), angles)
        weights = (torch.einsum("nhd,mhd->hnm", q, k_) / math.sqrt(8)).softmax(-1)
        mixed = torch.einsum("hnm,mhd->nhd", weights, v).flatten(1)
        u = u + block.attention_scale * attention.out(mixed)
        u = u + block.ffn_scale * block.ffn(norm_slowly(u, block.ffn_norm.weight))
    feature = d.head(norm_slowly(u[0], d.head_norm.weight))
    label = d.label_embedding
    inner = 0.01 * (label.first.weight @ label.embedding[class_id] + label.first.bias)
    inner = inner * torch.sigmoid(inner)
    return feature @ (0.01 * (label.second.weight @ inner + label.second.bias))


def test_logits_equal_those_of_each_scale_judged_alone() -> None:
    discriminator, images, y = make_discriminator(), draw_images(), torch.tensor([4, 0, 2])
    logits = discriminator(images, y)
    assert (logits.shape, logits.dtype) == ((3, 4), torch.float32)
    for b in range(3):
        for k in range(4):
            slow = judge_slowly(discriminator, k, images[k][b], int(y[b]))
            torch.testing.assert_close(logits[b, k], slow, rtol=1e-4, atol=1e-5)


def test_class_logits_hold_those_of_every_label() -> None:
    discriminator, images = make_discriminator(), draw_images()
    tokens = discriminator.tokens(images)
    every = discriminator.class_logits(tokens)
    for class_id in range(discriminator.config.num_classes):
        labels = torch.full((len(images[0]),), class_id)
        torch.testing.assert_close(every[..., class_id], discriminator.logits(tokens, labels))


def test_groups_equal_the_masked_attention() -> None:
    images, y = draw_images(), torch.tensor([1, 3, 3])
    grouped, masked, aggregated = (
        make_discriminator(attention)(images, y)
        for attention in ("scale_wise", "masked", "aggregated")
    )
    torch.testing.assert_close(grouped, masked)
    assert (grouped - aggregated).abs().min() > 1e-5  # every logit sees the other scales


@pytest.mark.parametrize("attention", ["scale_wise", "masked", "aggregated"])
@pytest.mark.parametrize("changed", range(4))
def test_a_scale_moves_its_own_logit_alone_unless_aggregated(attention: str, changed: int) -> None:
    discriminator, images, y = make_discriminator(attention), draw_images(), torch.tensor([1, 3, 3])
    before = discriminator(images, y)
    images[changed] = torch.randn_like(images[changed])
    moved = (discriminator(images, y) - before).abs().max(dim=0).values
    others = torch.arange(4) != changed
    assert moved[changed] > 1e-5
    if attention == "aggregated":
        assert (moved[others] > 1e-6).all()
    else:
        assert not moved[others].any()


def test_groups_of_the_full_grid_have_the_published_lengths() -> None:
    with torch.device("meta"):
        discriminator = Discriminator(DiscriminatorConfig())
    assert discriminator.group_sizes == (5, 17, 65, 257)
    config = discriminator.config
    assert (config.depth, config.width, config.heads, config.label_dim) == (12, 768, 12, 2048)


def test_rope_leaves_every_cls_alone_and_turns_each_grid_from_its_corner() -> None:
    discriminator = make_discriminator()
    assert discriminator.cls_index == [0, 2, 7, 24]
    cos, signed_sin = discriminator.rope[:, discriminator.cls_index]
    assert torch.equal(cos, torch.ones(4, 8))
    assert not signed_sin.any()
    for first, side in ((1, 1), (3, 2), (8, 4), (25, 8)):
        expected = rope_angles(side, 8).cos().repeat_interleave(2, dim=1)
        assert torch.equal(discriminator.rope[0, first : first + side * side], expected)


def test_scales_share_all_but_their_cls_and_scale_embedding() -> None:
    small, large = (
        Discriminator(replace(CONFIG, latent_size=size)).state_dict() for size in (4, 16)
    )
    differing = {key for key in large if small[key].shape != large[key].shape}
    assert small.keys() == large.keys()
    assert differing == {"cls", "scale_embedding"}


def test_branches_start_at_a_tenth() -> None:
    for block in Discriminator(CONFIG).blocks:
        for scale in (block.attention_scale, block.ffn_scale):
            assert torch.equal(scale, torch.full((16,), 0.1))


def test_label_embedding_starts_small() -> None:
    embedding = LabelEmbedding(100, 64).embedding.detach()
    assert float(embedding.std()) == pytest.approx(0.02, rel=0.05)


def test_unknown_attention_is_refused() -> None:
    with pytest.raises(InvalidInput, match="everything"):
        DiscriminatorConfig(attention="everything")
