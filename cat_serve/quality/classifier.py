"""A small image classifier with fixed architecture and seed: the judge of generated images.

Trained only on real photographs it says whether a generated image is recognised as the class asked for;
trained only on generated images and tested on photographs it gives the classification accuracy score
(Ravuri and Vinyals, arXiv 1905.10887).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from cat_serve.errors import CheckpointError
from cat_serve.files import written_whole

SIZE_PX = 32
SEED = 0
EPOCHS = 6
BATCH_SIZE = 128
MAX_LR = 4e-3


class Classifier(nn.Module):
    """Five convolutions, 32 px to a 4 px grid, and a linear layer: grey 32x32 images to logits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32),
            *_convolution(32, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            *_convolution(64, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.dropout = nn.Dropout(0.3)
        self.output = nn.Linear(128 * 4 * 4, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter quicker

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes] of float32 [B, 1, 32, 32] in 0..1."""
        return self.output(self.dropout(self.embed(images)))

    def embed(self, images: Tensor) -> Tensor:
        """Return the features before the last layer, float32 [B, 2048]."""
        return self.features(images)


def _convolution(width_in: int, width_out: int) -> list[nn.Module]:
    convolution = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width_out), nn.ReLU()]


def grey(images: np.ndarray) -> Tensor:
    """Map uint8 [B, H, W, 3] to float32 [B, 1, 32, 32] in 0..1: the mean of the channels, other sizes by area."""
    x = torch.from_numpy(images).float().mean(dim=3).unsqueeze(1) / 255
    return x if x.shape[2:] == (SIZE_PX, SIZE_PX) else functional.adaptive_avg_pool2d(x, SIZE_PX)


def train_classifier(
    images: np.ndarray, labels: np.ndarray, num_classes: int, epochs: int = EPOCHS
) -> Classifier:
    """Train with the fixed seed and recipe on uint8 [N, H, W, 3] and int64 [N]."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)  # of the weights, the order, the mirroring and the dropout
        model = Classifier(num_classes)
        _fit(model, images, torch.from_numpy(labels), epochs)
    return model.eval()


def _fit(model: Classifier, images: np.ndarray, targets: Tensor, epochs: int) -> None:
    size = min(BATCH_SIZE, len(images))
    steps = len(images) // size
    optimizer = torch.optim.AdamW(model.parameters(), lr=MAX_LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, MAX_LR, total_steps=steps * epochs, cycle_momentum=False
    )
    with tqdm(total=steps * epochs * size, unit="img", desc="classifier") as progress:
        for _ in range(epochs):
            order = torch.randperm(len(images))[: steps * size]
            for index in order.split(size):
                logits = model(_mirrored(grey(images[index.numpy()])))
                loss = functional.cross_entropy(logits, targets[index], label_smoothing=0.05)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                progress.update(len(index))


def _mirrored(images: Tensor) -> Tensor:
    """Mirror every other image or so."""
    chosen = torch.rand(len(images), 1, 1, 1) < 0.5
    return torch.where(chosen, images.flip(-1), images)


@torch.no_grad()
def predict(model: Classifier, images: np.ndarray, batch_size: int = 500) -> np.ndarray:
    """Return the most likely class of each of uint8 [N, H, W, 3], int64 [N]."""
    parts = [
        model(grey(images[start : start + batch_size])).argmax(dim=1)
        for start in range(0, len(images), batch_size)
    ]
    return torch.cat(parts).numpy()


def accuracy(model: Classifier, images: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of images recognised as their label, 0..1."""
    return float((predict(model, images) == labels).mean())


def save_classifier(path: Path, model: Classifier) -> None:
    """Keep a trained judge, so that several evaluations share it."""
    with written_whole(path) as temporary:
        torch.save(model.state_dict(), temporary)


def load_classifier(path: Path, num_classes: int) -> Classifier:
    """Read a judge kept by `save_classifier`."""
    model = Classifier(num_classes)
    try:
        model.load_state_dict(torch.load(path, weights_only=True))
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(
            f"{path.name} is not this classifier: {error}", hint="remove it; it is trained anew"
        ) from error
    return model.eval()
