"""Blocks in, scores out, learned. Empty until the sequence model arrives; the place is kept so that nothing moves then."""
