"""Archives in and out: Parquet and CSV files to frame batches and back, as sent.

Nothing is masked, resampled or judged here.
"""

from streams.archives.metadata import Description
from streams.archives.parquet import read_description, read_parquet, write_parquet

__all__ = ["Description", "read_description", "read_parquet", "write_parquet"]
