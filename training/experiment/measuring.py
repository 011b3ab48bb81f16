"""One measurement: the figures of a run's checkpoint, the same way for every run."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_serve.errors import InvalidInput
from training.evaluation.photographs import Photographs
from training.evaluation.store import Store

if TYPE_CHECKING:
    from training.evaluation.measures import Measures
    from training.evaluation.photographs import Reference

METRICS = ("recognition", "pairs", "fd", "manifolds")
SAMPLES = 2000
PHOTOGRAPHS = 10_000


@dataclass(frozen=True)
class Protocol:
    """How every checkpoint is measured; rows of different protocols are never compared.

    Attributes:
        samples: in all, as many of every class, seeds 0, 1, 2, ... of each, psi = 1; for the diagnostics too.
        photographs: of the test split that samples are compared with.
        metrics: of training.evaluation.
    """

    samples: int = SAMPLES
    photographs: int = PHOTOGRAPHS
    metrics: tuple[str, ...] = METRICS

    def __post_init__(self) -> None:
        if min(self.samples, self.photographs) < 20:
            raise InvalidInput(
                f"{self.samples} samples and {self.photographs} photographs cannot be compared.",
                hint="20 of each or more",
            )
        if "fd" not in self.metrics:
            raise InvalidInput("The primary metric is FD.", hint="let fd be one of --metrics")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": list(self.metrics)}


class Meter:
    """Measures checkpoints in features of EfficientNet-Lite0 against photographs; what is of these is kept in `folder`.

    Args:
        folder: what takes long and is the same for all runs; it may be removed.

    Raises:
        DataError: the photographs are not there.
        MissingDependency: the network for the features is not installed.
    """

    def __init__(self, protocol: Protocol, photographs: Path, folder: Path) -> None:
        from cat_serve.quality.features import EfficientNetFeatures
        from training.evaluation.measures import Measures
        from training.evaluation.photographs import fashion_mnist

        self.protocol, self.folder = protocol, folder
        reference = fashion_mnist(photographs)
        reference = replace(reference, test=_first(reference.test, protocol.photographs))
        self.reference: Reference = reference
        metrics = tuple(name for name in METRICS if name in protocol.metrics)
        self.measures: Measures = Measures(
            reference, EfficientNetFeatures(), Store(folder), metrics
        )

    def measure(self, checkpoint: Path) -> dict[str, Any]:
        """Return the figures of a checkpoint: those of training.evaluate for its samples, and the diagnostics.

        Raises:
            BadOutput: an image must not be shown.
        """
        from cat_serve.model.checkpoint import load_checkpoint
        from training.diagnostics import TITLES, measure
        from training.evaluation.sampling import Setting, open_subject

        started = time.process_time()
        subject = open_subject(checkpoint)
        here = self.folder / f"now-{checkpoint.parent.name}"  # of this checkpoint alone
        store = Store(here)
        made = subject.draw(Setting("balanced", 1.0, self.protocol.samples), store)
        figures = self.measures.of(made, self.measures.features(made, "sample", store=store))
        classes = len(subject.class_names or ())
        stages = measure(
            load_checkpoint(checkpoint), -(-self.protocol.samples // classes), "stages"
        )
        shutil.rmtree(here, ignore_errors=True)
        return {
            **figures,
            "diagnostics": {key: stages[key] for key in TITLES},
            "cpu_seconds": round(time.process_time() - started, 1),
        }

    def floor(self) -> dict[str, float]:
        """Return what no run is expected to beat: as many training photographs, and the classifier on test photographs."""
        assert self.reference.train is not None
        real = _first(self.reference.train, self.protocol.samples)
        figures = dict(self.measures.of(real, self.measures.features(real, "training photographs")))
        if "recognised" in figures:  # the classifier has learnt these by heart
            figures["recognised"] = self.measures.accuracy(self.reference.test)
        return figures


def _first(photographs: Photographs, count: int) -> Photographs:
    labels = photographs.labels
    return Photographs(photographs.images[:count], None if labels is None else labels[:count])
