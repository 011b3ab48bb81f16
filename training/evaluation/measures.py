"""The figures of one set of samples, each measured against the same photographs, features and judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from cat_serve.errors import InvalidInput
from training.evaluation import judges
from training.evaluation.photographs import Photographs, Reference
from training.evaluation.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from cat_serve.quality.distances import Moments

# metric -> what it says
METRICS: Mapping[str, str] = {
    "recognition": "does a classifier of real photographs take samples for what was asked",
    "cas": "how right is a classifier on real photographs that was trained on samples alone",
    "pairs": "distance of two samples of a class, beside that of photographs",
    "fd": "Frechet distance",
    "kd": "kernel distance",
    "manifolds": "precision and recall, density and coverage",
    "neighbours": "nearest training photographs of samples",
    "is": "Inception Score, with --inception alone",
}
NOT_ASKED = ("kd", "is")  # only when they are named
JUDGED = ("recognition", "cas")
BATCH_SIZE = 32


class Extractor(Protocol):
    """A network whose features images are compared in.

    Attributes:
        title: its name for people.
        figures: what the metrics fd and kd are called on its features.
        source: where it is from; other weights have another source.
    """

    title: str
    figures: ClassVar[Mapping[str, str]]
    source: str

    def __call__(self, images: np.ndarray) -> Tensor:
        """Return features float32 [B, W] of uint8 [B, H, W, 3]."""
        ...


@dataclass(eq=False)
class Measures:
    """Measures samples; features, radii and the judge are computed once, and kept.

    Attributes:
        metrics: names of `METRICS`.
    """

    reference: Reference
    extractor: Extractor
    store: Store
    metrics: tuple[str, ...]
    _radii: list[Tensor] = field(default_factory=list)
    _judge: Any = None
    _predicted: dict[str, np.ndarray] = field(default_factory=dict)
    _figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    _moments: Moments | None = None

    def features(
        self,
        photographs: Photographs,
        what: str,
        count: int | None = None,
        store: Store | None = None,
    ) -> Tensor:
        """Return the features of the first `count` images (default: all), float32 [N, W].

        Args:
            store: where they are kept, if not beside the others.
        """
        import torch

        def make(start: int, stop: int) -> np.ndarray:
            parts = [
                self.extractor(photographs.images[first : min(first + BATCH_SIZE, stop)]).numpy()
                for first in range(start, stop, BATCH_SIZE)
            ]
            return np.concatenate(parts)

        key = {"network": self.extractor.source, "images": photographs.digest}
        rows = len(photographs) if count is None else min(count, len(photographs))
        kept = store or self.store
        return torch.from_numpy(kept.array("features", key, rows, make, f"{what} features"))

    @cached_property
    def real(self) -> Tensor:
        """The features of what samples are compared with."""
        return self.features(self.reference.test, "test")

    def predict(self, photographs: Photographs) -> np.ndarray:
        """Return what the judge takes images for, int64 [N]."""
        from cat_serve.quality.classifier import predict

        if self._judge is None:
            assert self.reference.train is not None
            self._judge = judges.judge(self.reference.train, self.store)
        if photographs.digest not in self._predicted:
            self._predicted[photographs.digest] = predict(self._judge, photographs.images)
        return self._predicted[photographs.digest]

    def accuracy(self, photographs: Photographs) -> float:
        """Return the share of images that the judge takes for their label."""
        return float((self.predict(photographs) == photographs.labels).mean())

    def of(self, made: Photographs, features: Tensor) -> dict[str, Any]:
        """Return the figures of samples: one number each."""
        if made.digest not in self._figures:
            self._figures[made.digest] = self._measured(made, features)
        return self._figures[made.digest]

    def _measured(self, made: Photographs, features: Tensor) -> dict[str, Any]:
        from cat_serve.quality.distances import kernel_distance, pair_distance

        figures: dict[str, Any] = {}
        if "recognition" in self.metrics:
            figures["recognised"] = self.accuracy(made)
        if "pairs" in self.metrics and made.labels is not None:
            figures["pair_distance"] = pair_distance(features, made.labels)
        if "fd" in self.metrics:
            figures["fd"] = self.frechet(features)
        if "kd" in self.metrics:
            figures["kd"] = kernel_distance(features, self.real)["mean"]
        if "manifolds" in self.metrics:
            figures |= self.manifolds(features)
        if "is" in self.metrics:
            figures["inception_score"] = self.inception_score(made)
        return figures

    def inception_score(self, photographs: Photographs) -> float:
        """Return the Inception Score; the network runs once more, for its classes."""
        import torch

        from cat_serve.quality.inception import InceptionFeatures, inception_score

        network, images = self.extractor, photographs.images
        assert isinstance(network, InceptionFeatures)

        def make(start: int, stop: int) -> np.ndarray:
            parts = [
                network.probabilities(images[first : min(first + BATCH_SIZE, stop)]).numpy()
                for first in range(start, stop, BATCH_SIZE)
            ]
            return np.concatenate(parts)

        key = {"network": network.source, "images": photographs.digest}
        kept = self.store.array("classes", key, len(images), make, "Inception's classes")
        return inception_score(torch.from_numpy(kept))["mean"]

    def frechet(self, features: Tensor) -> float:
        """Return the Frechet distance to the reference: to its own moments where they are of these features."""
        from cat_serve.quality.distances import Moments, frechet

        if self._moments is None:
            given = self.reference.moments if self.extractor.figures["fd"] == "fid" else None
            self._moments = given or Moments.of(self.real)
        return frechet(self._moments, Moments.of(features))

    def manifolds(self, features: Tensor) -> dict[str, float]:
        """Return precision, recall, density and coverage."""
        from cat_serve.quality.neighbours import K_DENSITY, K_PRECISION, manifolds, squared_radii

        real = self.real
        self._radii = self._radii or squared_radii(real, (K_PRECISION, K_DENSITY))
        return manifolds(features, real, real_radii=self._radii).to_dict()


def choose_metrics(
    asked: list[str] | None, reference: Reference, labelled: bool, inception: bool = False
) -> tuple[str, ...]:
    """Return the metrics that are asked for, or all that these photographs and samples allow.

    Args:
        labelled: whether the samples have labels.
        inception: whether the features are Inception's.

    Raises:
        InvalidInput: one that is asked for cannot be measured.
    """
    lacking: dict[str, str] = {}
    if not (reference.labelled and labelled):
        why = "needs labelled samples, and labelled photographs to train on and to test with"
        lacking |= dict.fromkeys(JUDGED, why)
    if not labelled or reference.test.labels is None:
        lacking["pairs"] = "needs labels"
    if reference.train is None:
        lacking["neighbours"] = "needs the training photographs"
    if not inception:
        lacking["is"] = "needs Inception's classes (--inception)"
    if asked is None:
        return tuple(name for name in METRICS if name not in lacking and name not in NOT_ASKED)
    if impossible := [name for name in asked if name in lacking]:
        raise InvalidInput(f"{impossible[0]} {lacking[impossible[0]]}.", hint="leave it out of --metrics, or name them")  # fmt: skip
    return tuple(name for name in METRICS if name in asked)
