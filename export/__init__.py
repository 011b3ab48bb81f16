"""Convert a checkpoint into what is served, and prove that it agrees."""
