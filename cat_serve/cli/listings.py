"""`cat-serve classes` and `cat-serve models`: what there is, as tables for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cat_serve.cli.arguments import add_settings_command, read_models

if TYPE_CHECKING:
    from cat_serve.settings import RepositorySettings


def add_to(commands: Any) -> None:
    """Add both commands."""
    from cat_serve.settings import RepositorySettings

    for name, what, run in (
        ("classes", "list the classes of a model", classes),
        ("models", "list the models of the repository", models),
    ):
        add_settings_command(commands, name, what, RepositorySettings, run)


def classes(settings: RepositorySettings) -> None:
    """Print index and name of every class of the chosen model, separated by a tab."""
    artefacts, default = read_models(settings)
    for index, name in enumerate(artefacts[default].manifest.class_names):
        print(f"{index}\t{name}")


def models(settings: RepositorySettings) -> None:
    """Print one line for each model, its columns separated by tabs."""
    artefacts, default = read_models(settings)
    print("name", "version", "classes", "size_px", "precisions", "default", sep="\t")
    for name, artefact in artefacts.items():
        manifest = artefact.manifest
        size = "x".join(map(str, reversed(manifest.image_size)))
        precisions = ",".join(manifest.precisions) or "none"
        row = (name, artefact.version, manifest.num_classes, size, precisions)
        print(*row, "yes" if name == default else "no", sep="\t")
