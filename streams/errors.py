"""The errors of `streams`, drawn.

    StreamsError
    ├── CaptureError        a file cannot be read as a capture or byte stream
    ├── FrameError          bytes that claim to be a frame are not one
    │   └── ConfigurationError   a configuration frame contradicts itself
    ├── ArchiveError        a Parquet or CSV archive cannot be read or written
    ├── AlignmentError      sources cannot stand on one reporting grid
    ├── SettingsError       what a service is told contradicts itself
    └── LogError            the log cannot be read or written
        ├── LogFullError         there is no room for it now
        ├── UnreachableError     no server of it answers
        ├── DeniedError          its servers do not let us in, or not do this
        └── FencedError          another instance has taken over what was ours

A class exists only where a caller catches it differently. A message says what, which, and what to do.
"""

from __future__ import annotations


class StreamsError(Exception):
    """Root of every error that `streams` raises on purpose."""


class CaptureError(StreamsError):
    """A file cannot be read as a capture, a byte stream or an archive."""


class FrameError(StreamsError):
    """Bytes that claim to be a frame are not one; the message names the field."""


class ConfigurationError(FrameError):
    """A configuration frame contradicts itself or has not been seen yet."""


class ArchiveError(StreamsError):
    """A Parquet or CSV archive cannot be read or written; the message names the column."""


class AlignmentError(StreamsError):
    """Sources cannot stand on one reporting grid, for example at different rates."""


class SettingsError(StreamsError):
    """What a service is told contradicts itself; the message names the setting."""


class LogError(StreamsError):
    """The log cannot be read or written; the message names its file."""


class LogFullError(LogError):
    """There is no room to write now; it may be tried again."""


class UnreachableError(LogError):
    """No server of the log answers; it may be tried again."""


class DeniedError(LogError):
    """The log's servers refuse us: wrong credentials, an unknown certificate, or no right to do this."""


class FencedError(LogError):
    """Another instance has taken over what was ours: let go of it, and do not try again."""
