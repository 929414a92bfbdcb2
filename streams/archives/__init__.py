"""Archives in and out: Parquet and CSV files and COMTRADE records to frame batches and back, as sent.

Nothing is masked, resampled or judged here.
"""

from streams.archives.archive import Archive, Span, is_archive, measure, open_archive, read_archive
from streams.archives.comtrade import Written, write_record
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
    "Span",
    "Written",
    "is_archive",
    "join_parquet",
    "measure",
    "open_archive",
    "read_archive",
    "read_description",
    "read_parquet",
    "take",
    "write_parquet",
    "write_record",
]
