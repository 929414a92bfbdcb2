"""COMTRADE (IEEE C37.111-1991, -1999, -2013) in and out, for synchrophasors: ASCII, BINARY, BINARY32, FLOAT32.

In: records (`.cfg` with `.dat`, `.cff`) or frame batches. Out: rows of a table, or a record of the revision of 2013.
Nothing is resampled: samples of the wave are refused.
"""

from streams.archives.comtrade.channels import place
from streams.archives.comtrade.configuration import Record, is_record, open_record, refusal
from streams.archives.comtrade.own import own_description, read_own
from streams.archives.comtrade.rows import read_record
from streams.archives.comtrade.writing import Written, write_record

__all__ = [
    "Record",
    "Written",
    "is_record",
    "open_record",
    "own_description",
    "place",
    "read_own",
    "read_record",
    "refusal",
    "write_record",
]
