"""Make a CAT generator: data, VAE, adversarial training, evaluation."""
