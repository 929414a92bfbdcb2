"""Blocks in, scores out, in closed form: quadratic fits, signatures, compression, atypicality."""
