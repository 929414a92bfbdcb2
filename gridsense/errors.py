"""The errors of `gridsense`, drawn, and what the command line makes of every error that is raised on purpose.

    GridSenseError
    ├── UsageError           what was asked for cannot be asked for           exit 2
    ├── InputError           a file cannot be read or understood              exit 3
    │   └── LabelError       a file of labels
    ├── StoreError           the event store cannot be opened or written      exit 3
    ├── TrainingError        a training failed; the message quotes its log    exit 3
    ├── VerificationError    a model is whole, and breaks a promise           exit 3
    ├── PeerError            a broker or worker cannot be reached             exit 4
    └── DifferenceError      a check found what differs; no failure           exit 1

`streams.errors.StreamsError`, `baselines.errors.BaselinesError` and `models.errors.ModelsError` are the roots of the
libraries'; all exit with 3, save `streams.errors.SettingsError` (2), `UnreachableError` and `DeniedError` (4).
A class exists only where a caller catches it differently. A message says what, which, and what to do.
"""

from __future__ import annotations


class GridSenseError(Exception):
    """Root of every error that `gridsense` raises on purpose."""


class UsageError(GridSenseError):
    """What was asked for cannot be asked for; the message names the option."""


class InputError(GridSenseError):
    """A file cannot be read or understood; the message names the file."""


class LabelError(InputError):
    """A file of labels is missing or is not one."""


class StoreError(GridSenseError):
    """The event store cannot be opened or written."""


class TrainingError(GridSenseError):
    """A training failed; the message quotes its log."""


class VerificationError(GridSenseError):
    """A model is whole, and yet an engine does not run it as promised."""


class PeerError(GridSenseError):
    """A broker or worker cannot be reached."""


class DifferenceError(GridSenseError):
    """A check has found what differs; the message says what to do about it."""
