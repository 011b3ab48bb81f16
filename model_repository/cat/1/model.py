"""What Triton's python backend runs here; written by `python -m export.triton`."""

from cat_serve.triton_models.friendly import TritonPythonModel

__all__ = ["TritonPythonModel"]
