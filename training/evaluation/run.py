"""One evaluation from beginning to end: samples, figures, pictures, table."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cat_serve.errors import InvalidInput
from cat_serve.files import write_text
from training.evaluation import judges, neighbours, pictures
from training.evaluation.measures import Measures
from training.evaluation.neighbours import Neighbours
from training.evaluation.photographs import Photographs, Reference
from training.evaluation.sampling import Setting, Subject
from training.evaluation.table import TITLES, tables


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What is measured, how, and where the files go.

    Attributes:
        settings: how samples are drawn; everything is measured of the first, the others are set beside it. Empty for
            samples that were made elsewhere.
        vae: the model's VAE or a checkpoint that holds it, to measure its reconstructions.
        searched: how many training photographs neighbours are looked for in; None: as many as samples are compared with.
        command: what was typed, for the files.
    """

    subject: Subject
    measures: Measures
    settings: tuple[Setting, ...]
    out: Path
    vae: Path | None = None
    searched: int | None = None
    command: str = ""

    def run(self) -> dict[str, Any]:
        """Measure, write the files, and return the figures."""
        started = time.monotonic()
        self.out.mkdir(parents=True, exist_ok=True)
        store = self.measures.store
        made = self.subject.draw(self.settings[0], store) if self.settings else self._made()
        self._pictures_of_samples(made)
        figures = self.subject.what | self._head(made) | self._figures(made)
        if len(self.settings) > 1:
            figures["settings"] = [self._beside(setting) for setting in self.settings]
            title = TITLES[self.measures.extractor.figures["fd"]]
            if len({setting.psi for setting in self.settings}) > 1:
                pictures.draw_over_psi(figures["settings"], title, self.out / "psi.png")
        seconds = round(time.monotonic() - started, 1)
        figures |= {"command": self.command, "seconds": seconds, "hours": round(seconds / 3600, 3)}
        write_text(self.out / "evaluation.json", json.dumps(figures, indent=1) + "\n")
        write_text(self.out / "evaluation.md", tables(figures))
        return figures

    @property
    def _reference(self) -> Reference:
        return self.measures.reference

    @property
    def _names(self) -> tuple[str, ...]:
        return self._reference.class_names or self.subject.class_names or ()

    def _made(self) -> Photographs:
        assert self.subject.made is not None
        return self.subject.made

    def _head(self, made: Photographs) -> dict[str, Any]:
        """Return what the figures are of."""
        head: dict[str, Any] = {"images": len(made)}
        if self.settings:
            first = self.settings[0]
            classes = len(self.subject.class_names or ())
            each = len(made) if first.labels == "random" else len(made) // classes
            head |= {"labels": first.labels, "seeds": [0, each - 1], "truncation_psi": first.psi}
        compared = {"reference": self._reference.name, "photographs": len(self._reference.test)}
        return head | compared | {"features": self.measures.extractor.title}

    def _pictures_of_samples(self, made: Photographs) -> None:
        pictures.save_samples(made, self.out / "samples.png")
        if self.settings:
            pictures.save_interpolation(self.subject, self.settings[0].psi, self.out / "interpolation.png")  # fmt: skip
            pictures.save_truncation(self.subject, self.out / "truncation.png")

    def _figures(self, made: Photographs) -> dict[str, Any]:
        measures = self.measures
        rebuilt = self._reconstructions()
        figures = self._judged(made, rebuilt)
        if not {"pairs", "fd", "kd", "manifolds", "neighbours", "is"} & set(measures.metrics):
            return figures
        features = measures.features(made, "sample")
        own = measures.of(made, features)
        figures |= self._with_baselines(own, rebuilt)
        if "neighbours" in measures.metrics:
            figures["neighbours"] = self._neighbours(made, features).figures()
        return figures

    def _judged(self, made: Photographs, rebuilt: Photographs | None) -> dict[str, Any]:
        """Show samples to the judge, and photographs to one that saw only samples; draw the confusion."""
        from cat_serve.quality.classifier import accuracy

        measures, test = self.measures, self._reference.test
        figures: dict[str, Any] = {}
        if "recognition" in measures.metrics:
            assert made.labels is not None
            predicted = measures.predict(made)
            matrix = judges.confusion(made.labels, predicted, len(self._names))
            pictures.draw_confusion(matrix, self._names, self.out / "confusion.png")
            shares = (None if np.isnan(share) else round(share, 4) for share in matrix.diagonal().tolist())  # fmt: skip
            figures["recognised"] = float((predicted == made.labels).mean())
            figures["recognised_by_class"] = dict(zip(self._names, shares, strict=True))
            figures["classifier_on_real_test"] = measures.accuracy(test)
            if rebuilt is not None:
                figures["classifier_on_reconstructions"] = measures.accuracy(rebuilt)
        if "cas" in measures.metrics:
            assert test.labels is not None
            pupil = judges.pupil(made, len(self._names), measures.store)
            figures["trained_on_generated"] = accuracy(pupil, test.images, test.labels)
        return figures

    def _with_baselines(self, own: dict[str, Any], rebuilt: Photographs | None) -> dict[str, Any]:
        """Set figures of samples beside those of as many unseen training photographs, and of reconstructions."""
        from cat_serve.quality.distances import kernel_distance, pair_distance

        measures, reference = self.measures, self._reference
        names, figures, baselines = measures.extractor.figures, {}, {}
        if reference.held_out and reference.train is not None:
            baselines["real"] = measures.features(reference.train, "train", len(reference.test))
        if rebuilt is not None:
            baselines["reconstructions"] = measures.features(rebuilt, "reconstruction")
        if "pair_distance" in own:
            assert reference.test.labels is not None
            real = pair_distance(measures.real, reference.test.labels)
            pairs = {"generated": own["pair_distance"], "real": real}
            figures["pair_distance"] = pairs | {"ratio": pairs["generated"] / pairs["real"]}
        if "fd" in own:
            others = {key: measures.frechet(features) for key, features in baselines.items()}
            figures[names["fd"]] = {"generated": own["fd"]} | others
        if "kd" in own:
            kernels = {key: kernel_distance(features, measures.real)["mean"] for key, features in baselines.items()}  # fmt: skip
            figures[names["kd"]] = {"generated": own["kd"]} | kernels
        if "inception_score" in own:
            of_test = measures.inception_score(reference.test)
            figures["inception_score"] = {"generated": own["inception_score"], "real": of_test}
        if "precision" in own:
            keys = ("precision", "recall", "density", "coverage")
            figures["manifolds"] = {"generated": {key: own[key] for key in keys}}
            if "real" in baselines:
                figures["manifolds"]["real"] = measures.manifolds(baselines["real"])
        return figures

    def _neighbours(self, made: Photographs, features: Any) -> Neighbours:
        """Find the nearest training photographs, and draw them."""
        measures, reference = self.measures, self._reference
        assert reference.train is not None
        searched = self.searched or len(reference.test)
        train = measures.features(reference.train, "train", searched)
        found = neighbours.find(features, train, measures.real if reference.held_out else None)
        title = measures.extractor.title
        neighbours.draw_rows(made, reference.train, found, title, self.out / "neighbours.png")
        neighbours.draw_distances(found, title, self.out / "distances.png")
        return found

    def _beside(self, setting: Setting) -> dict[str, Any]:
        """Return the figures of one setting, one number each."""
        made = self.subject.draw(setting, self.measures.store)
        own = self.measures.of(made, self.measures.features(made, "sample"))
        head = {"labels": setting.labels, "truncation_psi": setting.psi, "images": len(made)}
        return head | own

    def _reconstructions(self) -> Photographs | None:
        """Return what the VAE makes of the photographs that samples are compared with."""
        if self.vae is None:
            return None
        from cat_serve.files import sha256_of
        from cat_serve.model.checkpoint import open_vae
        from training.vae import reconstruct

        test = self._reference.test
        files = [self.vae] if self.vae.is_file() else sorted(self.vae.rglob("*.safetensors"))
        key = {"vae": [sha256_of(file) for file in files], "images": test.digest}
        vae = open_vae(self.vae)

        def make(start: int, stop: int) -> np.ndarray:
            return reconstruct(vae, test.images[start:stop], quiet=True)

        images = self.measures.store.array("reconstruct", key, len(test), make)
        return Photographs(images, test.labels)


def require_same_classes(subject: Subject, reference: Reference) -> None:
    """Refuse photographs whose classes are not those of the model: their indices would mean other things.

    Raises:
        InvalidInput: both have names, and the names differ.
    """
    own, others = subject.class_names, reference.class_names
    if own is not None and others is not None and tuple(own) != tuple(others):
        pairs = zip((*own, *[None] * len(others)), others, strict=False)
        index, (mine, other) = next((i, pair) for i, pair in enumerate([*pairs, (own[-1], None)]) if pair[0] != pair[1])  # fmt: skip
        raise InvalidInput(
            f"Class {index} is {mine!r} for the model and {other!r} in {reference.name}.",
            hint="name the classes as the model does with --class-names, or measure what needs no labels",
        )
