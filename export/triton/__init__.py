"""A model repository made one of NVIDIA Triton's."""
