"""Attention heads of the published sizes, by width; a file of DiT's layout does not say how many it has."""

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16, 1280: 16}
