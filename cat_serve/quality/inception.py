"""Features of the Inception network that FIDs are measured with, from a file that the user names.

Nothing is downloaded, and no such file comes with this project. The format is the TorchScript of StyleGAN2-ADA's and
StyleGAN3's metrics (`inception-2015-12-05.pt`), which holds TensorFlow's weights of 2015, resizes to 299 px as
TensorFlow did, and takes bytes: the same numbers as the original FID.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from cat_serve.errors import CheckpointError
from cat_serve.files import sha256_of
from cat_serve.quality.features import require_images


class InceptionFeatures:
    """pool_3 features, from a TorchScript `network(uint8 [B, 3, H, W], return_features=True)`.

    Raises:
        CheckpointError: no such file, or no TorchScript.
    """

    title = "Inception"
    figures: ClassVar[Mapping[str, str]] = {"fd": "fid", "kd": "kid"}

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise CheckpointError(
                f"There is no network {path}.", hint="name inception-2015-12-05.pt"
            )
        self.source = f"{path.name} {sha256_of(path)}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TorchScript is old, as is every published FID
                self._network = torch.jit.load(path, map_location="cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path.name} is no TorchScript: {str(error).splitlines()[0]}",
                hint="the file is StyleGAN's inception-2015-12-05.pt; weights alone (.pth) do not say the network",
            ) from error

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Tensor:
        """Return features float32 [B, W] of uint8 [B, H, W, 3]; all go through the network at once."""
        require_images(images)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        try:
            features: Tensor = self._network(x, return_features=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.source.split()[0]} does not give features of bytes: {str(error).splitlines()[0]}",
                hint="the file is StyleGAN's inception-2015-12-05.pt",
            ) from error
        return features.float()
