"""Archives in and out: Parquet and CSV files to frame batches and back, as sent.

Nothing is masked, resampled or judged here.
"""

from streams.archives.archive import Archive, is_archive, open_archive, read_archive
from streams.archives.joining import join_parquet
from streams.archives.metadata import Description
from streams.archives.parquet import ArchiveWriter, read_description, read_parquet, take, write_parquet
from streams.archives.placing import Placement, Plan

__all__ = [
    "Archive",
    "ArchiveWriter",
    "Description",
    "Placement",
    "Plan",
    "is_archive",
    "join_parquet",
    "open_archive",
    "read_archive",
    "read_description",
    "read_parquet",
    "take",
    "write_parquet",
]
