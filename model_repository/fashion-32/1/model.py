"""What Triton's python backend runs here; written by `python -m export.triton`."""

from cat_serve.triton_models.engine import TritonPythonModel

__all__ = ["TritonPythonModel"]
