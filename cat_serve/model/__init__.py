"""The generator side of the models: configuration, layers, checkpoints. Needs torch, except for `config`."""
