"""Blocks in, scores out, learned. Empty until the sequence model arrives; its place is kept."""
