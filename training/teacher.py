"""Teachers: frozen pretrained networks whose features the discriminator learns to predict (REPA).

A teacher is called with images and answers with features. The paper's is DINOv2 ViT-B/14; the small one,
EfficientNet-Lite0, comes whole inside two Python packages and needs no hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from cat_serve.errors import ArtefactError, InvalidInput, MissingDependency
from cat_serve.quality.features import (
    EFFICIENTNET_MIN_PX,
    EFFICIENTNET_STRIDE,
    efficientnet_input,
    load_efficientnet,
)

TEACHERS = ("none", "efficientnet-lite0", "dinov2-vitb14")

DINOV2_HUB_NAME = "facebook/dinov2-base"
DINOV2_PX = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Features:
    """What a teacher sees in B images; no gradient flows through it.

    Attributes:
        cls: float32 [B, W], one vector for the image.
        patches: float32 [B, side * side, W], row by row.
    """

    cls: Tensor
    patches: Tensor
    side: int


class Teacher(Protocol):
    """A frozen network; the features of one image do not depend on the others of its batch.

    Attributes:
        name: one of `TEACHERS`.
        width: W, the width of its features.
    """

    name: str
    width: int

    def __call__(self, images: Tensor) -> Features:
        """Describe images, float32 [B, 3, H, W] in -1..1; they are resized to what the network looks at."""
        ...


def open_teacher(
    name: str, *, size_px: int | None = None, weights: Path | None = None, device: str = "cpu"
) -> Teacher | None:
    """Open a teacher; `none` is no teacher.

    Args:
        size_px: the side the network looks at; each teacher has its own default.
        weights: for dinov2-vitb14, a folder with `config.json` and `model.safetensors`; without it the
            hub's weights are taken, from the local cache where they are there.
        device: where the network runs and its features lie.

    Raises:
        InvalidInput: no such teacher, or one that takes no such option.
        MissingDependency: the teacher's package or weights are not here.
        ArtefactError: the weights are not this teacher's.
    """
    if name not in TEACHERS:
        raise InvalidInput(f"No teacher {name!r}.", hint=f"teachers: {', '.join(TEACHERS)}")
    if weights is not None and name != "dinov2-vitb14":
        raise InvalidInput(
            f"The teacher {name} takes no weights folder, got {weights}.",
            hint="only dinov2-vitb14 does",
        )
    if name == "efficientnet-lite0":
        return EfficientNetLite0(EFFICIENTNET_MIN_PX if size_px is None else size_px, device)
    if name == "dinov2-vitb14":
        network = load_dinov2(DINOV2_HUB_NAME if weights is None else weights)
        return DinoV2(network, DINOV2_PX if size_px is None else size_px, device)
    return None


def _frozen(network: nn.Module, device: str) -> nn.Module:
    return network.eval().requires_grad_(False).to(device)


def _require_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise InvalidInput(
            f"A teacher got images {list(images.shape)} {images.dtype}.",
            hint="float32 [B, 3, H, W] in -1..1",
        )


# --- EfficientNet-Lite0 --------------------------------------------------------------------------


class EfficientNetLite0:
    """EfficientNet-Lite0 with ImageNet weights: the last feature map, 1/32 of the side, and its mean.

    The mean is what the network's own classifier sees. 128 px give a grid of 4 x 4.
    """

    name = "efficientnet-lite0"
    width = 1280

    def __init__(self, size_px: int = EFFICIENTNET_MIN_PX, device: str = "cpu") -> None:
        if size_px < EFFICIENTNET_MIN_PX or size_px % EFFICIENTNET_STRIDE:
            raise InvalidInput(
                f"{self.name} cannot look at images of {size_px} px.",
                hint=f"a multiple of {EFFICIENTNET_STRIDE}, at least {EFFICIENTNET_MIN_PX}",
            )
        self.size_px, self.device = size_px, device
        self.network = _frozen(load_efficientnet(size_px), device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """See `Teacher`."""
        _require_images(images)
        x = efficientnet_input(images.to(self.device), self.size_px)
        x = x.contiguous(memory_format=torch.channels_last)
        grid = self.network.extract_features(x).float()  # type: ignore[operator]
        patches = grid.flatten(2).transpose(1, 2)
        return Features(patches.mean(dim=1), patches, grid.shape[-1])


# --- DINOv2 --------------------------------------------------------------------------------------


class DinoV2:
    """DINOv2: CLS and patch tokens after the final normalisation; 224 px give a grid of 16 x 16.

    Args:
        network: a `transformers.Dinov2Model`.
    """

    name = "dinov2-vitb14"

    def __init__(self, network: nn.Module, size_px: int = DINOV2_PX, device: str = "cpu") -> None:
        config = network.config
        self.width: int = config.hidden_size  # type: ignore[union-attr, assignment]
        patch: int = config.patch_size  # type: ignore[union-attr, assignment]
        if size_px < patch or size_px % patch:
            raise InvalidInput(
                f"{self.name} cannot look at images of {size_px} px.", hint=f"a multiple of {patch}"
            )
        self.size_px, self.side, self.device = size_px, size_px // patch, device
        self.network = _frozen(network, device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Features:
        """See `Teacher`."""
        _require_images(images)
        x = dinov2_input(images.to(self.device), self.size_px)
        tokens = self.network(pixel_values=x).last_hidden_state.float()
        return Features(tokens[:, 0], tokens[:, 1:], self.side)


def dinov2_input(images: Tensor, size_px: int) -> Tensor:
    """Normalise [B, 3, H, W] in -1..1 with ImageNet's statistics, then resize (bicubic, as REPA and GAT do)."""
    mean, std = (torch.tensor(v).to(images).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x = ((images + 1) / 2 - mean) / std
    return functional.interpolate(x, size=(size_px, size_px), mode="bicubic", align_corners=False)


def load_dinov2(source: str | Path) -> nn.Module:
    """Load `transformers.Dinov2Model` in float32 from a hub name or a local folder (safetensors only).

    Raises:
        MissingDependency: transformers or the weights are not here.
        ArtefactError: the weights are damaged or another network's, or leave part of this one unset, of
            which transformers alone would only warn.
    """
    try:
        from transformers import Dinov2Model
    except ImportError as error:
        raise MissingDependency(
            "The teacher dinov2-vitb14 needs transformers.",
            hint="pip install transformers, or choose efficientnet-lite0 or none",
        ) from error
    try:
        network, report = Dinov2Model.from_pretrained(
            source, output_loading_info=True, use_safetensors=True
        )
    except OSError as error:
        raise MissingDependency(
            f"The weights of the teacher dinov2-vitb14 are not at {source}.",
            hint=f"download {DINOV2_HUB_NAME} to a folder and name that folder",
        ) from error
    except Exception as error:  # a damaged file, or tensors of other shapes
        raise ArtefactError(
            f"{source} cannot be loaded as DINOv2: {error}",
            hint=f"the teacher's weights are {DINOV2_HUB_NAME}",
        ) from error
    if report["missing_keys"]:
        raise ArtefactError(
            f"{source} holds no DINOv2: {len(report['missing_keys'])} tensors are missing, "
            f"{min(report['missing_keys'])} among them.",
            hint=f"the teacher's weights are {DINOV2_HUB_NAME}",
        )
    return network.float()
