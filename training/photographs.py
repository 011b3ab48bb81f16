"""The photographs behind prepared latents, for a teacher to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cat_serve.errors import DataError
from training.data import Latents
from training.fashion_mnist import DEFAULT_FOLDER, load_split, to_rgb32


class Photographs:
    """Photograph i is the one that latent i was encoded from; bytes in memory, padded batch by batch.

    Args:
        folder: where the data set's files are; by default where its package puts them.

    Raises:
        DataError: the index names another data set, or its labels are not those of the files.
    """

    def __init__(self, data: Latents, folder: Path | None = None) -> None:
        source = data.index.images
        if (source.get("dataset"), source.get("layout")) != ("fashion-mnist", "to_rgb32"):
            raise DataError(
                f"The photographs of {source.get('dataset')!r} cannot be opened again.",
                hint="a teacher needs them: train with --teacher none, or on Fashion-MNIST",
            )
        self._images, labels = load_split(source["split"], folder or DEFAULT_FOLDER)
        if not np.array_equal(labels, data.labels.numpy()):
            raise DataError(
                "The photographs are not those that the latents were made from.",
                hint="name the folder they were prepared from with --photographs",
            )

    def batch(self, indices: Tensor) -> Tensor:
        """Return float32 [B, 3, H, W] in -1..1 for int64 indices [B]."""
        images = torch.from_numpy(to_rgb32(self._images[indices.numpy()]))
        return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
