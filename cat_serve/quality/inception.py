"""The Inception network that FIDs and Inception Scores are measured with, from a file that the user names.

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
from torch import Tensor, nn

from cat_serve.errors import CheckpointError, InvalidInput
from cat_serve.files import sha256_of
from cat_serve.quality.features import require_images

SPLITS = 10
SEED = 0


class InceptionFeatures:
    """pool_3 features, from a TorchScript `network(uint8 [B, 3, H, W], return_features=True)`; and its classes.

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

    def __call__(self, images: np.ndarray) -> Tensor:
        """Return features float32 [B, W] of uint8 [B, H, W, 3]; all go through the network at once."""
        return self._run(images, "features", return_features=True)

    def probabilities(self, images: np.ndarray) -> Tensor:
        """Return the probabilities of its classes float32 [B, 1008], from logits without bias, as published scores are."""
        return self._run(images, "probabilities", no_output_bias=True)

    @torch.no_grad()
    def _run(self, images: np.ndarray, what: str, **how: bool) -> Tensor:
        require_images(images)
        x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
        try:
            values: Tensor = self._network(x, **how)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.source.split()[0]} does not give {what} of bytes: {str(error).splitlines()[0]}",
                hint="the file is StyleGAN's inception-2015-12-05.pt",
            ) from error
        return values.float()


def inception_score(probabilities: Tensor) -> dict[str, float]:
    """Return exp(E_x KL(p(y|x) || p(y))), mean and standard deviation over ten parts (Salimans et al., arXiv 1606.03498).

    By torchmetrics. The parts are random, always the same ones: samples come class by class, and a part in that order
    would know few classes.

    Args:
        probabilities: float32 [N, classes], rows that sum to 1, N >= 20.

    Raises:
        InvalidInput: there are fewer images.
    """
    from torchmetrics.image.inception import InceptionScore

    if len(probabilities) < 2 * SPLITS:
        raise InvalidInput(f"{len(probabilities)} images have no Inception Score.", hint="20 or more")  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it keeps what it is given
        metric = InceptionScore(feature=nn.Identity(), splits=SPLITS)
    least = torch.finfo(torch.float32).tiny
    metric.update(probabilities.clamp(min=least).log())  # it takes logits
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        mean, std = metric.compute()
    return {"mean": float(mean), "std": float(std)}
