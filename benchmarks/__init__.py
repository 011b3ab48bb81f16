"""What it takes to serve: computed, and measured."""
