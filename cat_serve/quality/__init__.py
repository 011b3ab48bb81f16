"""What training and export both measure with. Needs torch."""
