"""Toy models, as the serving suite has them."""

from __future__ import annotations

from tests.serving.conftest import add_model, repository, steps

__all__ = ["add_model", "repository", "steps"]
