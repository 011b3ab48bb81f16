"""The models that run inside a Triton server; each `model.py` of a model repository names one of them."""
