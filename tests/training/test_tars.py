"""Tars of images: webdataset's shards, ILSVRC's tar of class tars, and what is wrong with others."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cat_serve.errors import DataError
from training.data import Latents
from training.images import decode
from training.photographs import open_photographs
from training.prepare import main
from training.readers import Piece
from training.tars import TarImages, is_tars


def picture(number: int, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    pixels = np.random.RandomState(number).randint(0, 256, (36, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def tar_of(members: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_tars(folder: Path, tars: Mapping[str, Mapping[str, bytes]]) -> Path:
    folder.mkdir()
    for name, members in tars.items():
        (folder / name).write_bytes(tar_of(members))
    return folder


@pytest.fixture
def ilsvrc(tmp_path: Path) -> Path:
    """A tar of one tar for each class, as ILSVRC2012_img_train.tar is."""
    classes = {
        f"n0{n}.tar": tar_of({f"n0{n}_{k}.JPEG": picture(10 * n + k, "JPEG") for k in range(4)})
        for n in (2, 1, 3)
    }
    path = tmp_path / "train.tar"
    path.write_bytes(tar_of(classes))
    return path


def pixels_of(source: TarImages) -> list[np.ndarray]:
    read = [each.pixels for each in source.read(np.arange(len(source)))]
    return [each for each in read if each is not None]


def test_shards_of_webdataset_are_read(tmp_path: Path) -> None:
    root = write_tars(
        tmp_path / "shards",
        {
            "0.tar": {"a/1.png": picture(1), "a/1.cls": b"10\n", "2.cls": b"9", "2.png": picture(2)},
            "1.tar": {"3.png": picture(3), "3.json": b'{"label": 10, "width": 40}'},
        },
    )  # fmt: skip
    source = TarImages(root, 32)
    assert source.class_names == ("9", "10")
    assert source.labels.tolist() == [0, 1, 1]
    assert source.files == ("0.tar/2.png", "0.tar/a/1.png", "1.tar/3.png")
    for got, number in zip(pixels_of(source), (2, 1, 3), strict=True):
        np.testing.assert_array_equal(got, decode(picture(number), 32))


def test_labels_beside_images_may_be_text_or_json(tmp_path: Path) -> None:
    """Of both, the text counts; other files of a sample say nothing."""
    members = {
        "1.png": picture(1), "1.json": b'{"cls": 3, "caption": "a"}', "1.cls": b"5", "1.txt": b"a",
        "2.cls": b"6", "2.png": picture(2), "2.json": b'{"class": 7}', "3.JPG": picture(3, "JPEG"), "3.json": b'{"class": 7}', "3.seg.png": picture(4),
    }  # fmt: skip
    source = TarImages(write_tars(tmp_path / "t", {"a.tar": members}), 32)
    assert dict(zip(source.files or (), source.labels.tolist(), strict=True)) == {
        "a.tar/1.png": 0, "a.tar/2.png": 1, "a.tar/3.JPG": 2
    }  # fmt: skip
    assert source.class_names == ("5", "6", "7")


def test_tar_of_class_tars_is_read_without_unpacking(ilsvrc: Path) -> None:
    source = TarImages(ilsvrc, 32)
    assert source.class_names == ("n01", "n02", "n03")
    assert source.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert source.files is not None
    assert source.files[4] == "train.tar/n02.tar/n02_0.JPEG"
    whole = ilsvrc.read_bytes()
    for listed, number in zip(source.listed, [10, 11, 12, 13, 20], strict=False):
        data = whole[listed.offset_bytes : listed.offset_bytes + listed.size_bytes]
        assert data == picture(number, "JPEG")


def test_folder_of_class_tars_is_one_class_for_each(tmp_path: Path) -> None:
    root = write_tars(tmp_path / "t", {"bee.tar": {"1.png": picture(1)}, "ant.tar": {"x/1.a.png": picture(2), "x/1.b.png": picture(3), "._1.png": b"mac"}})  # fmt: skip
    source = TarImages(root, 32)
    assert source.class_names == ("ant", "bee")
    assert source.files == ("ant.tar/x/1.a.png", "ant.tar/x/1.b.png", "bee.tar/1.png")


@pytest.mark.parametrize("above", ["", "./", "photos/", "photos/train/"])
def test_tar_of_class_folders_has_these_classes(tmp_path: Path, above: str) -> None:
    """At any depth, and not one class named after the tar."""
    names = ("bee/1.png", "ant/2.png", "bee/more/3.png")
    members = {f"{above}{name}": picture(n) for n, name in enumerate(names)}
    if "train" in above:
        members |= {"photos/val/cow/4.png": picture(4)}
    source = TarImages(write_tars(tmp_path / "t", {"all.tar": members}), 32)
    assert source.class_names == ("ant", "bee")
    assert source.labels.tolist() == [0, 1, 1]
    for got, number in zip(pixels_of(source), (1, 0, 2), strict=True):
        np.testing.assert_array_equal(got, decode(picture(number), 32))


@pytest.mark.parametrize(
    ("tars", "said"),
    [
        ({"all.tar": ("ant/1.png", "bee/2.png", "3.png")}, r"3\.png and others lie beside folders"),
        ({"0.tar": ("ant/1.png", "bee/2.png"), "1.tar": ("ant/3.png",)}, r"0\.tar has folders.*ant, bee"),
    ],
)  # fmt: skip
def test_tars_whose_classes_cannot_be_told_are_refused(
    tmp_path: Path, tars: dict[str, tuple[str, ...]], said: str
) -> None:
    content = {tar: {name: picture(1) for name in names} for tar, names in tars.items()}
    with pytest.raises(DataError, match=said):
        TarImages(write_tars(tmp_path / "t", content), 32)


def test_class_tar_may_have_folders_beside_its_images(tmp_path: Path) -> None:
    root = write_tars(tmp_path / "t", {"ant.tar": {"1.png": picture(1), "more/2.png": picture(2)}, "bee.tar": {"x/3.png": picture(3)}})  # fmt: skip
    source = TarImages(root, 32)
    assert (source.class_names, source.labels.tolist()) == (("ant", "bee"), [0, 0, 1])


def test_tars_and_folders_give_the_same_latents(
    ilsvrc: Path, tmp_path: Path, vae_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the command, with processes; and the teacher sees the photographs again."""
    for n in (1, 2, 3):
        (tmp_path / "tree" / f"n0{n}").mkdir(parents=True)
        for k in range(4):
            path = tmp_path / "tree" / f"n0{n}" / f"n0{n}_{k}.JPEG"
            path.write_bytes(picture(10 * n + k, "JPEG"))
    common = ["--size", "32", "--vae", str(vae_folder)]
    for place, out, workers in ((ilsvrc, "tars", "2"), (tmp_path / "tree", "folder", "0")):
        flags = ["--images", str(place), "--out", str(tmp_path / out), "--workers", workers]
        assert main([*common, *flags]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["count"] == 12
    tars, folder = Latents(tmp_path / "tars"), Latents(tmp_path / "folder")
    everything = torch.arange(12)
    assert torch.equal(tars.moments(everything), folder.moments(everything))
    assert torch.equal(tars.labels, folder.labels)
    assert tars.index.images["content"] == folder.index.images["content"]
    for rows in (everything, torch.tensor([7, 2])):
        seen = open_photographs(tars).batch(rows)
        assert torch.equal(seen, open_photographs(folder).batch(rows))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    ilsvrc.rename(moved / "train.tar")
    with pytest.raises(DataError, match="is not the photograph"):
        open_photographs(tars)
    assert open_photographs(tars, moved).batch(torch.tensor([3])).shape == (1, 3, 32, 32)


def test_changed_tar_is_another_source(ilsvrc: Path) -> None:
    first = TarImages(ilsvrc, 32).description
    assert TarImages(ilsvrc, 32).description == first
    ilsvrc.touch()
    assert TarImages(ilsvrc, 32).description["listing"] != first["listing"]


def test_names_are_given_to_labels_and_to_class_tars(ilsvrc: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("n01 ant\nn02 bee\nn03 cow\n")
    assert TarImages(ilsvrc, 32, names).class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.png": b"x", "1.cls": b"0", "2.png": b"x"}, r"2\.png has no label.*\n.*2\.cls"),
        ({"notes.txt": b"x"}, "no images in tars"),
        ({"1.png": b"x", "1.json": b"{"}, r"1\.json is no JSON"),
    ],
)
def test_tars_of_another_layout_are_refused(
    tmp_path: Path, members: dict[str, bytes], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        TarImages(write_tars(tmp_path / "t", {"a.tar": members}), 32)
    assert re.search(said, str(caught.value), re.DOTALL)


def test_shards_with_and_without_labels_are_refused(tmp_path: Path) -> None:
    root = write_tars(tmp_path / "t", {"a.tar": {"1.png": b"x", "1.cls": b"0"}, "b.tar": {"1.png": b"x"}})  # fmt: skip
    with pytest.raises(DataError, match="Some tars have labels"):
        TarImages(root, 32)


@pytest.mark.parametrize("name", ["t.tar", "t.tar.gz", "cut.tar", "inner.tar"])
def test_damaged_and_compressed_tars_are_refused(tmp_path: Path, name: str) -> None:
    whole = tar_of({"1.png": picture(1), "2.png": picture(2)})
    content = {
        "t.tar": b"this is no tar at all" * 100,
        "t.tar.gz": gzip.compress(whole),
        "cut.tar": whole[: 512 + 2000],
        "inner.tar": tar_of({"n01.tar": whole[: 512 + 2000]}),
    }[name]
    path = tmp_path / name
    path.write_bytes(content)
    assert is_tars(path)
    with pytest.raises(DataError, match=r"cannot be read as a tar"):
        TarImages(path, 32)


def test_broken_image_in_a_tar_is_named(tmp_path: Path, vae_folder: Path) -> None:
    members = {f"{n}.png": picture(n) for n in range(5)} | {"3.png": b"not an image"}
    root = write_tars(tmp_path / "t", {"ant.tar": members})
    flags = ["--images", str(root), "--size", "32", "--vae", str(vae_folder), "--workers", "0"]
    assert main([*flags, "--max-broken", "0.5", "--out", str(tmp_path / "data")]) == 0
    listed = json.loads((tmp_path / "data" / "images.json").read_text())
    assert listed["broken"] == {"ant.tar/3.png": "not an image that Pillow knows"}
    assert len(listed["tars"]) == 4


def test_piece_beyond_the_end_of_its_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(b"0123456789")
    assert Piece(path, 2, 3).read_bytes() == b"234"
    with pytest.raises(OSError, match=r"t\.tar ends before it"):
        Piece(path, 8, 3).read_bytes()


def test_tar_beside_class_folders_is_left_alone(write_images: Callable[..., Path]) -> None:
    root = write_images("a/1.png", "b/1.png")
    (root / "download.tar").write_bytes(tar_of({"1.png": picture(1)}))
    assert not is_tars(root)
    assert not is_tars(root / "a")
    assert is_tars(root / "download.tar")
