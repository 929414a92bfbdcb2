"""A script in, frames in the order in which they leave out, each with its moment.

Turns follow each other where it loops, and times are written anew where they are shifted: only then are frames touched.
It reads a second at a time and holds no more. It keeps no clock: whoever sends says what time it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import numpy as np

from gridsense.errors import InputError
from gridsense.simulator.frames import apart, sealed, shifted
from gridsense.simulator.recording import Piece
from gridsense.simulator.script import Script

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Round:
    """About a second of frames of all streams, in the order in which they leave.

    Attributes
    ----------
    due_ns
        When, on the clock of the recording, shifts included.
    streams
        Place of the stream of each.
    frames
        The frames.
    """

    due_ns: list[int]
    streams: list[int]
    frames: list[bytes]


class Playback:
    """Plays a script once, or again and again.

    Parameters
    ----------
    script
        What is sent.
    loop
        Begin again at the end: time stamps go on rising, by the file's length in whole reporting periods.
    delays_ns
        By how much the frames of each stream leave after their time.
    """

    def __init__(self, script: Script, *, loop: bool, delays_ns: Sequence[int]) -> None:
        self.turns = 0
        self._script, self._loop, self._delays_ns = script, loop, delays_ns
        self._bases = [s.configuration.time_base for s in script.streams]
        self._rounds: Iterator[list[Piece]] = iter(())
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._shift_s, self._turn_s = Fraction(0), Fraction(0)

    def begin(self) -> int:
        """Read the first round.

        Returns
        -------
        int
            When its first frame is due, delays aside, UTC nanoseconds.

        Raises
        ------
        InputError
            If there is no frame.
        """
        self._rounds = self._script.rounds()
        first = next(self._rounds, None)
        if first is None:
            raise InputError("there is no data frame to send in the files")
        self._rounds = chain([first], self._rounds)
        return min(int(piece.due_ns[0]) for piece in first)

    def shift(self, shift_s: int) -> int:
        """Move everything in time, before anything is read.

        Parameters
        ----------
        shift_s
            By at least this, in whole seconds and reporting periods.

        Returns
        -------
        int
            By how many seconds.
        """
        whole = _common([Fraction(1), *(s.period_s for s in self._script.streams)])
        self._shift_s = math.ceil(shift_s / whole) * whole
        return int(self._shift_s)

    def read(self) -> Round | None:
        """Prepare the next round.

        Returns
        -------
        Round | None
            None at the end.
        """
        pieces = next(self._rounds, None)
        if pieces is None:
            if not self._loop:
                return None
            self._turn_s += self._length_s()
            self.turns += 1
            self._rounds = self._script.rounds()
            pieces = next(self._rounds, [])
        if not self.turns:
            for piece in pieces:
                self._first.setdefault(piece.stream, int(piece.due_ns[0]))
                self._last[piece.stream] = int(piece.due_ns[-1])
        return self._ordered(pieces)

    def _ordered(self, pieces: list[Piece]) -> Round:
        shift_s = self._shift_s + self._turn_s
        shift_ns = round(shift_s * _NS)
        frames: list[bytes] = []
        for piece in pieces:
            octets = piece.octets
            if shift_s:
                octets = sealed(shifted(octets, self._bases[piece.stream], shift_s))
            frames += apart(octets)
        due_ns = np.concatenate([p.due_ns + (shift_ns + self._delays_ns[p.stream]) for p in pieces])
        streams = np.repeat([p.stream for p in pieces], [len(p.due_ns) for p in pieces])
        order = np.argsort(due_ns, kind="stable")
        return Round(due_ns[order].tolist(), streams[order].tolist(), [frames[i] for i in order.tolist()])

    def _length_s(self) -> Fraction:
        """Measure the recording, from the first frame to where the next would be, in whole periods of every stream."""
        periods = [s.period_s for s in self._script.streams]
        end = max(Fraction(last, _NS) + periods[stream] for stream, last in self._last.items())
        length = end - Fraction(min(self._first.values()), _NS)
        whole = _common(periods)
        # time stamps are rounded: a hundredth of a period more is none
        return max(1, math.ceil(length / whole - Fraction(1, 100))) * whole


def _common(periods: Sequence[Fraction]) -> Fraction:
    """Find the shortest time that is a whole number of each period."""
    return Fraction(math.lcm(*(p.numerator for p in periods)), math.gcd(*(p.denominator for p in periods)))
