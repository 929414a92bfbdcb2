"""Frames in, blocks out: codec, captures, archives, quality, alignment. Knows no scorer, no event and no screen."""
