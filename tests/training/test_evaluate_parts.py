from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cat_serve.contract import Batch, Output
from cat_serve.errors import BadOutput, DataError, InvalidInput
from cat_serve.latents import latent_from_seed
from training.evaluation import neighbours
from training.evaluation.judges import confusion
from training.evaluation.measures import Measures, choose_metrics
from training.evaluation.photographs import Photographs, Reference, folders, npz, read_npz
from training.evaluation.run import require_same_classes
from training.evaluation.sampling import Setting, Subject
from training.evaluation.store import CHUNK, Store

NAMES = ("circle", "square", "star")


class Corners:
    """Features that can be reckoned by hand: the red values of the upper corners."""

    title, source = "Corners", "this file"
    figures: ClassVar = {"fd": "fd_effnet_lite0", "kd": "kd_effnet_lite0"}

    def __call__(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images[:, 0, [0, -1], 0].astype(np.float32))


def echo(batch: Batch) -> Output:
    """Paint the class into the first channel and a trace of z and psi into the others."""
    images = np.zeros((len(batch), 4, 4, 3), dtype=np.uint8)
    images[..., 0] = batch.class_id[:, None, None]
    images[..., 1] = (np.abs(batch.z[:, 0]) * 50).astype(np.uint8)[:, None, None]
    images[..., 2] = (batch.truncation_psi * 100).astype(np.uint8)[:, None, None]
    return Output(images, np.ones(len(batch), dtype=bool))


def subject(engine=echo) -> Subject:
    return Subject({"model": "echo", "version": "1", "engine": "echo"}, NAMES, (4,), engine)


def random_images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, 8, 8, 3), dtype=np.uint8)


# --- samples --------------------------------------------------------------------------------------


def test_every_class_gets_the_same_seeds(tmp_path: Path) -> None:
    made = subject().draw(Setting("balanced", 0.5, 180), Store(tmp_path))
    assert made.labels is not None
    assert made.labels.tolist() == [0] * 60 + [1] * 60 + [2] * 60
    assert (made.images[:, 0, 0, 0] == made.labels).all()
    seeds = [int(abs(latent_from_seed(seed, (4,))[0]) * 50) for seed in range(60)]
    assert made.images[:, 0, 0, 1].tolist() == seeds * 3
    assert (made.images[..., 2] == 50).all()


def test_random_labels_are_unbalanced_repeatable_and_have_seeds_of_their_own() -> None:
    classes, seeds = Setting("random", 1.0, 300).rows(3)
    assert seeds.tolist() == list(range(300))
    counts = np.bincount(classes, minlength=3)
    assert len(set(counts)) > 1
    assert (abs(counts - 100) < 40).all()
    assert (Setting("random", 0.5, 300).rows(3)[0] == classes).all()


def test_balanced_samples_are_rounded_up_to_as_many_of_each_class() -> None:
    classes, _ = Setting("balanced", 1.0, 100).rows(3)
    assert np.bincount(classes).tolist() == [34, 34, 34]


@pytest.mark.parametrize("psi", [-0.1, 1.5])
def test_no_truncation_is_refused(psi: float) -> None:
    with pytest.raises(InvalidInput, match="is no truncation"):
        Setting("balanced", psi, 10)


def test_an_image_that_is_not_ok_is_never_counted(tmp_path: Path) -> None:
    def broken(batch: Batch) -> Output:
        output = echo(batch)
        output.ok[13] = False
        return output

    with pytest.raises(BadOutput, match="Image 13 of 21, class 1"):
        subject(broken).draw(Setting("balanced", 1.0, 21), Store(tmp_path))


# --- what is kept ---------------------------------------------------------------------------------


def test_an_interrupted_array_goes_on_where_it_was(tmp_path: Path) -> None:
    asked: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return np.arange(start, stop)

    store, count = Store(tmp_path), 2 * CHUNK + 7
    with pytest.raises(KeyboardInterrupt):
        store.array("rows", {"a": 1}, count, make)
    assert (store.array("rows", {"a": 1}, count, make) == np.arange(count)).all()
    assert asked == [(0, CHUNK), (CHUNK, 2 * CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, count)]
    store.array("rows", {"a": 1}, count, make)
    assert len(asked) == 4
    store.array("rows", {"a": 2}, 3, make)
    assert len(asked) == 5


def test_a_damaged_piece_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.array("rows", {}, 5, lambda start, stop: np.arange(start, stop))
    (piece,) = tmp_path.rglob("*.npy")
    piece.write_bytes(piece.read_bytes()[:20])
    assert store.array("rows", {}, 5, lambda start, stop: np.arange(stop)).tolist() == list(range(5))  # fmt: skip
    assert np.load(piece).tolist() == list(range(5))


def test_samples_of_another_version_truncation_or_label_are_not_those_kept(tmp_path: Path) -> None:
    store, drawn = Store(tmp_path), Setting("balanced", 1.0, 6)
    first = subject().draw(drawn, store)
    other = Subject({"model": "echo", "version": "2", "engine": "echo"}, NAMES, (4,), lambda batch: Output(255 - echo(batch).images, np.ones(len(batch), dtype=bool)))  # fmt: skip
    assert (other.draw(drawn, store).images == 255 - first.images).all()
    assert (subject().draw(Setting("balanced", 0.5, 6), store).images[..., 2] == 50).all()
    random = subject().draw(Setting("random", 1.0, 6), store)
    assert (random.images[:, 0, 0, 0] == random.labels).all()


# --- figures --------------------------------------------------------------------------------------


def corner_images(values: list[tuple[int, int]]) -> np.ndarray:
    images = np.zeros((len(values), 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, -1, 0] = np.array(values).T
    return images


def test_copies_are_caught_and_unseen_photographs_are_the_measure(tmp_path: Path) -> None:
    train = Photographs(corner_images([(10 * i, 0) for i in range(20)]))
    test = Photographs(corner_images([(10 * i + 3, 0) for i in range(20)]))
    measures = Measures(
        Reference("drawn", test, train), Corners(), Store(tmp_path), ("neighbours",)
    )
    features = {name: measures.features(images, name) for name, images in (("train", train), ("test", test))}  # fmt: skip
    copied = neighbours.find(features["train"], features["train"], features["test"])
    assert copied.figures()["nearer_than_unseen"] == 1
    assert copied.figures()["generated"]["least"] == 0
    assert copied.indices[:, 0].tolist() == list(range(20))
    assert copied.figures()["below_unseen_percentile_1"] == 1
    fresh = neighbours.find(features["test"], features["train"], features["test"])
    assert fresh.figures()["nearer_than_unseen"] == 0.5
    assert fresh.figures()["unseen"]["median"] == pytest.approx(3)
    assert "unseen" not in neighbours.find(features["test"], features["train"], None).figures()


def test_every_class_is_drawn_with_its_first_and_its_most_similar_sample() -> None:
    nearest = np.tile([3.0, 1.0, 2.0], 10)
    rows = neighbours.chosen_rows(np.arange(10).repeat(3), nearest)
    assert rows == [(3 * label, 3 * label + 1) for label in range(10)]
    assert len(neighbours.chosen_rows(np.arange(1000), np.zeros(1000))) == 10
    assert neighbours.chosen_rows(np.array([4, 4, 4, 9, 9]), nearest[:5]) == [(0, 1), (1, 2), (2, 0), (3, 4), (4, 3)]  # fmt: skip
    assert neighbours.chosen_rows(None, nearest)[:2] == [(0, 1), (1, 4)]


def test_figures_are_of_the_features_given(tmp_path: Path) -> None:
    """Each set has variance 4 in one dimension and 0 in the other, means 12 apart."""
    near = Photographs(corner_images([(1, 0), (5, 0), (3, 0)] * 4), np.zeros(12, dtype=np.int64))
    far = Photographs(corner_images([(13, 0), (17, 0), (15, 0)] * 4), np.zeros(12, dtype=np.int64))
    reference = Reference("drawn", near, near, ("one",))
    measures = Measures(reference, Corners(), Store(tmp_path), ("pairs", "fd", "manifolds"))
    figures = measures.of(far, measures.features(far, "sample"))
    assert figures["fd"] == pytest.approx(144)
    assert (figures["precision"], figures["recall"]) == (0, 0)
    # of the 12 * 11 ordered pairs 32 are 4 apart (13 and 17), 64 are 2 apart
    assert figures["pair_distance"] == pytest.approx((32 * 4 + 64 * 2) / (12 * 11))
    assert measures.of(near, measures.real)["precision"] == 1


def test_confusion_is_of_each_class_apart() -> None:
    matrix = confusion(np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1]), 3)
    assert matrix[:2].tolist() == [[0.75, 0.25, 0], [0, 1, 0]]
    assert np.isnan(matrix[2]).all()


# --- photographs ----------------------------------------------------------------------------------


def test_folders_give_unseen_photographs_beside_those_of_training(write_images, tmp_path: Path) -> None:  # fmt: skip
    train = write_images("a/1.png", "a/2.png", "b/1.png", "b/2.png", "b/0broken.png")
    (train / "b" / "0broken.png").write_bytes(b"no image")
    test = write_images("a/1.png", "b/1.png")
    reference = folders(train, test, 16, None)
    assert reference.class_names == ("a", "b")
    assert reference.train is not None
    assert reference.train.images.shape == (4, 16, 16, 3)
    assert reference.train.labels is not None
    assert reference.train.labels.tolist() == [0, 0, 1, 1]
    assert reference.labelled
    alone = folders(train, None, 16, None, most=2)
    assert (len(alone.test), alone.held_out, alone.labelled) == (2, False, False)
    with pytest.raises(DataError, match="do not have the same classes"):
        folders(train, write_images("a/1.png"), 16, None)


def test_a_folder_of_images_alone_has_no_labels(write_images) -> None:
    reference = folders(write_images("1.png", "2.png", "notes.txt/"), None, 8, None)
    assert (len(reference.test), reference.test.labels, reference.class_names) == (2, None, None)
    assert choose_metrics(None, reference, labelled=True) == ("fd", "manifolds", "neighbours")
    with pytest.raises(InvalidInput, match="recognition needs labelled samples"):
        choose_metrics(["recognition"], reference, labelled=True)


def test_adms_layout_is_read(tmp_path: Path) -> None:
    path = tmp_path / "VIRTUAL_imagenet256_labeled.npz"
    mean, covariance = np.arange(3.0), np.eye(3)
    np.savez(path, arr_0=random_images(4), arr_1=np.arange(4), mu=mean, sigma=covariance, mu_s=mean, sigma_s=covariance)  # fmt: skip
    reference = npz(path)
    assert (reference.test.images == random_images(4)).all()
    assert reference.moments is not None
    assert reference.moments.mean.tolist() == [0, 1, 2]
    assert choose_metrics(None, reference, labelled=True) == ("pairs", "fd", "manifolds")
    shares = tmp_path / "mixtures.npz"
    np.savez(shares, random_images(2), np.full((2, 3), 1 / 3, dtype=np.float32))
    assert read_npz(shares)[0].labels is None


def test_an_npz_without_images_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "floats.npz"
    np.savez(path, np.zeros((2, 8, 8, 3)))
    with pytest.raises(DataError, match=r"has float64 \[2, 8, 8, 3\] as arr_0"):
        read_npz(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="no npz that can be read"):
        read_npz(path)
    with pytest.raises(InvalidInput, match="There is no file"):
        read_npz(tmp_path / "none.npz")


def test_photographs_of_other_classes_are_refused() -> None:
    other = Reference("garments", Photographs(random_images(2)), None, ("circle", "hat", "star"))
    with pytest.raises(
        InvalidInput, match="Class 1 is 'square' for the model and 'hat' in garments"
    ):
        require_same_classes(subject(), other)
    fewer = Reference("garments", Photographs(random_images(2)), None, NAMES[:2])
    with pytest.raises(InvalidInput, match="Class 2 is 'star' for the model and None"):
        require_same_classes(subject(), fewer)
    require_same_classes(subject(), Reference("shapes", other.test, None, NAMES))


def test_pictures_can_be_drawn_without_labels(tmp_path: Path) -> None:
    made, train = Photographs(random_images(3)), Photographs(random_images(6, seed=1))
    flat = torch.from_numpy(train.images.reshape(6, -1).astype(np.float32))
    found = neighbours.find(flat[:3] + 1, flat, None)
    neighbours.draw_rows(made, train, found, "pixels", tmp_path / "rows.png")
    neighbours.draw_distances(found, "pixels", tmp_path / "distances.png")
    for name in ("rows", "distances"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert np.asarray(picture).std() > 10
