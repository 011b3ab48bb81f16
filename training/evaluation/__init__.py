"""How good a model's images are: what is measured, against what, and what is written; `training.evaluate` is the command."""
