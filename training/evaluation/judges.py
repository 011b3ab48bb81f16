"""Two classifiers of one recipe: one saw only real training photographs, the other only samples. Both are kept."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.evaluation.photographs import Photographs
from training.evaluation.store import Store

GENERATED_EPOCHS = 12  # twice those of the judge: there are six times fewer images


def judge(train: Photographs, store: Store) -> Any:
    """Return the classifier trained on real photographs."""
    from cat_serve.quality.classifier import EPOCHS

    return _trained(train, EPOCHS, "judge", store)


def pupil(made: Photographs, num_classes: int, store: Store) -> Any:
    """Return the classifier trained on samples: what it gets right is the classification accuracy score."""
    return _trained(made, GENERATED_EPOCHS, "pupil", store, num_classes)


def _trained(
    images: Photographs, epochs: int, what: str, store: Store, num_classes: int | None = None
) -> Any:
    from cat_serve.quality import classifier
    from training.evaluation.store import digest_of

    assert images.labels is not None
    classes = num_classes or int(images.labels.max()) + 1
    key = {
        "images": images.digest, "labels": digest_of(images.labels), "classes": classes, "epochs": epochs,
        "recipe": [classifier.SEED, classifier.BATCH_SIZE, classifier.MAX_LR],
    }  # fmt: skip
    path = store.place(what, key).with_suffix(".pt")
    if path.exists():
        return classifier.load_classifier(path, classes)
    model = classifier.train_classifier(images.images, images.labels, classes, epochs)
    classifier.save_classifier(path, model)
    return model


def confusion(asked: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the shares [asked, recognised] of every class; a class without samples has a row of NaN."""
    matrix = np.zeros((num_classes, num_classes))
    np.add.at(matrix, (asked, predicted), 1)
    with np.errstate(invalid="ignore"):
        return matrix / matrix.sum(axis=1, keepdims=True)
