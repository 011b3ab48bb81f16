"""Image folders: which images, in which order, of which class, under which name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cat_serve.errors import DataError, InvalidInput
from training.class_names import name_classes
from training.folder import ImageFolder

WriteImages = Callable[..., Path]


def test_classes_are_folders_and_images_lie_at_any_depth(write_images: WriteImages) -> None:
    root = write_images("bird/b.png", "bird/a/9.JPEG", "bird/a/z/1.webp", "ant/x.jpg")
    source = ImageFolder(root, 16)
    assert source.class_names == ("ant", "bird")
    assert source.files == ("ant/x.jpg", "bird/a/9.JPEG", "bird/a/z/1.webp", "bird/b.png")
    assert source.labels.tolist() == [0, 1, 1, 1]
    read = list(source.read(np.array([3, 0])))
    assert [p.pixels.shape for p in read if p.pixels is not None] == [(16, 16, 3)] * 2


def test_numbers_are_ordered_as_numbers_before_names(write_images: WriteImages) -> None:
    root = write_images("10/a.png", "9/a.png", "b/a.png", "A/a.png", "0/a.png")
    assert ImageFolder(root, 16).class_names == ("0", "9", "10", "A", "b")


def test_hidden_and_foreign_files_are_no_images(write_images: WriteImages) -> None:
    root = write_images("a/1.png", "b/1.png", ".cache/1.png", "a/.hidden.png", "__MACOSX/1.png")
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "README").write_text("not a class")
    assert ImageFolder(root, 16).files == ("a/1.png", "b/1.png")


def test_links_that_go_round_end(write_images: WriteImages) -> None:
    root = write_images("a/1.png", "b/1.png")
    (root / "a" / "again").symlink_to(root / "a", target_is_directory=True)
    assert ImageFolder(root, 16).files == ("a/1.png", "b/1.png")


def test_linked_classes_and_images_are_followed_and_dead_links_left_out(
    write_images: WriteImages,
) -> None:
    elsewhere = write_images("far/1.png", "far/deep/2.png")
    root = write_images("a/1.png", "b/1.png")
    (root / "c").symlink_to(elsewhere / "far", target_is_directory=True)
    (root / "a" / "linked.png").symlink_to(elsewhere / "far" / "1.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    source = ImageFolder(root, 16)
    assert source.files == ("a/1.png", "a/linked.png", "b/1.png", "c/1.png", "c/deep/2.png")
    assert source.class_names == ("a", "b", "c")
    assert all(each.pixels is not None for each in source.read(np.arange(5)))


def test_tree_of_imagenet_is_entered_at_train(write_images: WriteImages) -> None:
    root = write_images("train/n02/a.JPEG", "train/n01/a.JPEG", "val/n01/b.JPEG")
    source = ImageFolder(root, 16)
    assert source.class_names == ("n01", "n02")
    assert source.files == ("n01/a.JPEG", "n02/a.JPEG")


def test_class_called_train_is_a_class(write_images: WriteImages) -> None:
    """Trains and tests are no splits where other classes stand beside them, or images lie right inside."""
    assert ImageFolder(write_images("train/a/1.png", "bus/1.png"), 16).class_names == ("bus", "train")  # fmt: skip
    assert ImageFolder(write_images("train/1.png", "test/1.png"), 16).class_names == ("test", "train")  # fmt: skip


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "Nothing that is a class"),
        (("1.png", "2.png"), "2 images, 1.png among them, lie in"),
        (("a/1.png", "2.png"), "1 images, 2.png among them"),
        (("a/1.png", "b/"), "holds no images"),
    ],
)
def test_folder_of_another_layout_is_refused(
    write_images: WriteImages, names: tuple[str, ...], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        ImageFolder(write_images(*names), 16)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere", 16)


def test_listing_tells_a_changed_folder_but_not_a_moved_one(write_images: WriteImages) -> None:
    root = write_images("a/1.png", "b/1.png", "b/2.png")
    first = ImageFolder(root, 16).description
    moved = root.rename(root.with_name("moved"))
    second = ImageFolder(moved, 16).description
    assert (first["listing"], first["root"]) == (second["listing"], str(root.resolve()))
    assert second["root"] == str(moved.resolve())
    (moved / "b" / "2.png").write_bytes((moved / "b" / "1.png").read_bytes())
    assert ImageFolder(moved, 16).description["listing"] != first["listing"]


# --- names ---------------------------------------------------------------------------------------

FOLDERS = ("n01440764", "n02012849", "n03126707")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("names.json", json.dumps(["tench", "crane", "crane"])),
        ("names.json", json.dumps({"n03126707": "crane", "n02012849": "crane", "n01440764": "tench, Tinca tinca"})),
        ("imagenet_class_index.json", json.dumps({"0": ["n01440764", "tench"], "134": ["n02012849", "crane"], "517": ["n03126707", "crane"], "3": ["n9", "x"]})),
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707\tcrane\n\nn99 other\n"),
    ],
    ids=["list", "object", "index", "text"],
)  # fmt: skip
def test_names_come_from_a_file_and_stay_apart(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    names = name_classes(FOLDERS, tmp_path / file)
    assert names == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_without_a_file_folders_are_names() -> None:
    assert name_classes(FOLDERS, None) == FOLDERS


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("names.json", '["tench"]', "1 names for 3 class folders"),
        ("names.json", '{"n01440764": "tench"}', "names no class 'n02012849', nor 1 others"),
        ("names.json", '"tench"', "a JSON str"),
        ("names.json", "[", "holds no class names"),
        ("names.txt", "n01440764 tench\nn02012849\n", "names no class 'n02012849'"),
    ],
)
def test_unusable_names_are_refused(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError, match=said):
        name_classes(FOLDERS, tmp_path / file)


def test_missing_file_of_names_is_a_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no file of class names .*names\.json"):
        name_classes(FOLDERS, tmp_path / "names.json")
