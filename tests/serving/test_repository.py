from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cat_serve import repository as module
from cat_serve.errors import ArtefactError, InvalidInput, UnknownModel
from cat_serve.manifest import GOLDEN_NAME
from cat_serve.repository import choose_default, find_repository, load_models

AddModel = Callable[..., Any]


def test_setting_wins_and_must_be_a_folder(tmp_path: Path) -> None:
    assert find_repository(tmp_path) == tmp_path
    with pytest.raises(ArtefactError, match="not a folder") as caught:
        find_repository(tmp_path / "absent")
    assert "CAT_SERVE_MODEL_REPOSITORY" in str(caught.value.hint)


def test_copy_in_the_package_comes_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "cat_serve"
    package.mkdir()
    monkeypatch.setattr(module, "_PACKAGE", package)
    with pytest.raises(ArtefactError, match="no model repository"):
        find_repository()
    (tmp_path / "model_repository").mkdir()
    assert find_repository() == tmp_path / "model_repository"
    (package / "_model_repository").mkdir()
    assert find_repository() == package / "_model_repository"


def test_highest_version_number_wins(add_model: AddModel, repository: Path) -> None:
    for version in ("2", "10", "9"):
        add_model(version=version)
    (repository / "toy" / ".11.old").mkdir()
    (repository / "toy" / "latest").mkdir()
    assert load_models(repository)["toy"].folder.name == "10"


def test_folders_without_versions_and_the_reserved_name_are_no_models(
    add_model: AddModel, repository: Path
) -> None:
    add_model()
    (repository / "notes").mkdir()
    (repository / "README.md").write_text("models\n")
    (repository / "cat" / "1").mkdir(parents=True)
    assert list(load_models(repository)) == ["toy"]


def test_empty_repository_is_an_error(repository: Path) -> None:
    with pytest.raises(ArtefactError, match="holds no model"):
        load_models(repository)


def test_changed_file_is_refused(add_model: AddModel, repository: Path) -> None:
    artefact = add_model()
    (artefact.folder / GOLDEN_NAME).write_bytes(b"other")
    with pytest.raises(ArtefactError, match="not the file its manifest describes"):
        load_models(repository)


def test_model_under_another_name_is_refused(add_model: AddModel, repository: Path) -> None:
    add_model("toy")
    (repository / "toy").rename(repository / "renamed")
    with pytest.raises(ArtefactError, match="'renamed' holds the model 'toy'"):
        load_models(repository)


def test_default_is_the_wanted_the_only_or_the_preferred_model() -> None:
    assert choose_default(["a", "b"], "b") == "b"
    assert choose_default(["a"]) == "a"
    assert choose_default(["a", "fashion-32"]) == "fashion-32"
    with pytest.raises(InvalidInput, match="several models") as caught:
        choose_default(["b", "a"])
    assert "a, b" in str(caught.value.hint)
    with pytest.raises(UnknownModel, match="no model 'c'"):
        choose_default(["a"], "c")
