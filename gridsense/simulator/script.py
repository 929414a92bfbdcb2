"""Files in, the streams that are served and the frames of each out, a second at a time.

A file's streams are served as they are, PMU by PMU, or as concentrators made up of the file's PMUs in turn. A PMU's
bytes are copied from frame to frame, never decoded again. When frames leave, and to whom, is not known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gridsense.encoding import Encoder, made_encoder
from gridsense.errors import InputError, UsageError
from gridsense.simulator.frames import Octets, head, sealed
from gridsense.simulator.recording import Piece, Reel, open_reels, rounds
from gridsense.sources import open_source, read_rounds
from streams.archives.joining import midnight, slots
from streams.block import FrameBatch
from streams.c37118.configuration import ConfigurationFrame, PmuConfiguration, channel_table, encode_configuration
from streams.c37118.frame import MAX_SIZE, MIN_SIZE, PREFIX_SIZE, SYNC, FrameType
from streams.channels import ChannelTable, Pmu
from streams.errors import ConfigurationError, FrameError

MADE_BYTES = 1 << 29
"""Values that are held in memory for made-up concentrators, at most."""

_ABSENT = 0x8000  # STAT of filler data
_COUNTS = 60_000  # of an integer magnitude, at most: some room below 65,535
_CODES = 0xFFFE  # ID codes run from 1 to 65,534


@dataclass(frozen=True, slots=True)
class ServedStream:
    """What one port serves.

    Attributes
    ----------
    name
        Of the source, so that a receiver that calls it so names it as the file does.
    configuration
        What it answers.
    """

    name: str
    configuration: ConfigurationFrame

    @property
    def id_code(self) -> int:
        """ID code of the stream."""
        return self.configuration.id_code

    @property
    def period_s(self) -> Fraction:
        """Time from one frame to the next."""
        rate = self.configuration.data_rate
        return Fraction(1, rate) if rate > 0 else Fraction(max(1, -rate))


class Script(Protocol):
    """What is sent, from beginning to end."""

    @property
    def streams(self) -> tuple[ServedStream, ...]:
        """What is served, names unique."""
        ...

    def rounds(self) -> Iterator[list[Piece]]:
        """Read everything once.

        Returns
        -------
        Iterator[list[Piece]]
            What is due in one second, in order; `Piece.stream` is a place in `streams`.
        """
        ...


def read_script(files: Sequence[Path], channels: Path | None = None, *, split: bool = False) -> Script:
    """Serve what files hold.

    Parameters
    ----------
    files
        Captures and archives, side by side in time.
    channels
        Map of the columns, for tables of somebody else's.
    split
        One stream a PMU, called as the PMU is; else the streams of the files as they are.

    Returns
    -------
    Script
        Read again whenever it is played.

    Raises
    ------
    InputError
        If a file holds nothing that can be served.
    """
    reels = open_reels(files, channels)
    tracks = [track for reel in reels for track in reel.tracks]
    if not split:
        names = _unique([t.name for t in tracks])
        streams = [ServedStream(n, t.configuration) for n, t in zip(names, tracks, strict=True)]
        parts = [_Part(place) for place in range(len(tracks))]
        return _FileScript(tuple(streams), tuple(reels), tuple(parts))
    pmus, parts = [], []
    for place, track in enumerate(tracks):
        configuration, at = track.configuration, PREFIX_SIZE
        for pmu, named in zip(configuration.pmus, channel_table(configuration).pmus, strict=True):
            pmus.append((configuration, replace(pmu, station=named.name)))
            parts.append(_Part(place, slice(at, at + pmu.size)))
            at += pmu.size
    names = _unique([pmu.station for _, pmu in pmus])
    codes = _unique_codes([pmu.id_code for _, pmu in pmus])
    try:
        streams = [
            ServedStream(name, _sayable(replace(configuration, id_code=code, pmus=(replace(pmu, station=name),))))
            for name, code, (configuration, pmu) in zip(names, codes, pmus, strict=True)
        ]
    except ConfigurationError as error:
        raise InputError(f"{files[0]}: cannot be served PMU by PMU: {error}") from error
    return _FileScript(tuple(streams), tuple(reels), tuple(parts))


@dataclass(frozen=True, slots=True)
class _Part:
    """Where the bytes of a served stream come from: whole frames of a track, or one PMU's columns of them."""

    track: int
    columns: slice | None = None


@dataclass(frozen=True, slots=True)
class _FileScript:
    """The streams of files."""

    streams: tuple[ServedStream, ...]
    reels: tuple[Reel, ...]
    parts: tuple[_Part, ...]

    def rounds(self) -> Iterator[list[Piece]]:
        """Read the files again."""
        users: dict[int, list[tuple[int, _Part]]] = {}
        for place, part in enumerate(self.parts):
            users.setdefault(part.track, []).append((place, part))
        for pieces in rounds(self.reels):
            yield [self._cut(place, part, piece) for piece in pieces for place, part in users[piece.stream]]

    def _cut(self, place: int, part: _Part, piece: Piece) -> Piece:
        if part.columns is None:
            return replace(piece, stream=place)
        own = piece.octets[:, part.columns]
        octets = np.empty((len(own), own.shape[1] + MIN_SIZE), np.uint8)
        octets[:, :PREFIX_SIZE] = piece.octets[:, :PREFIX_SIZE]
        octets[:, PREFIX_SIZE:-2] = own
        fields = head(octets)
        fields["size"] = octets.shape[1]
        fields["id_code"] = self.streams[place].id_code
        return Piece(place, piece.due_ns, sealed(octets))


def made_script(
    files: Sequence[Path],
    concentrators: int,
    pmus_each: int,
    *,
    channels: Path | None = None,
    integers: bool = False,
) -> Script:
    """Make up concentrators of a file's PMUs, so that a small file serves a big load.

    The PMUs of the file are taken in turn. Where they are used up they come again, numbered (``Bus 7``, ``Bus 7 (2)``),
    and read the file from a later place, the repeats evenly spread over its length: identical values at once would be
    one event everywhere. Where a repeat comes to the end of the file it goes on at its beginning, which is a jump.

    Parameters
    ----------
    files
        Captures and archives of one reporting rate; held in memory.
    concentrators
        How many streams.
    pmus_each
        PMUs in each; a stream of one is called as its PMU, others ``PDC 1``, ``PDC 2``...
    channels
        Map of the columns, for tables of somebody else's.
    integers
        Phasors as 16-bit integers; else everything as float32.

    Returns
    -------
    Script
        With the ID codes 1, 2...

    Raises
    ------
    UsageError
        If the numbers are out of their range, or the files too long to be held. (`InputError` comes of files that hold
        nothing to serve.)
    """
    if concentrators < 1 or pmus_each < 1 or concentrators > _CODES:
        raise UsageError(f"--concentrators {concentrators} --pmus-each {pmus_each}: from 1 concentrator of 1 PMU on")
    tape = _record(files, channels, integers=integers)
    count = len(tape.pmus)
    turns = -(-concentrators * pmus_each // count)
    wanted = [divmod(j, count) for j in range(concentrators * pmus_each)]
    names = _unique([tape.pmus[p].station if not k else f"{tape.pmus[p].station} ({k + 1})" for k, p in wanted])
    shifts = [k * len(tape.time_ns) // turns for k, _ in wanted]
    streams, places = [], []
    try:
        for n in range(concentrators):
            own = range(n * pmus_each, (n + 1) * pmus_each)
            pmus = tuple(replace(tape.pmus[wanted[j][1]], station=names[j], id_code=j % _CODES + 1) for j in own)
            name = pmus[0].station if pmus_each == 1 else f"PDC {n + 1}"
            streams.append(ServedStream(name, _sayable(ConfigurationFrame(n + 1, pmus, tape.data_rate))))
            places.append(tuple((wanted[j][1], shifts[j]) for j in own))
    except ConfigurationError as error:
        raise UsageError(f"--pmus-each {pmus_each}: {error}") from error
    return _MadeScript(tuple(streams), tape, tuple(places))


@dataclass(frozen=True, slots=True)
class _Tape:
    """All PMUs of a file on one reporting grid."""

    pmus: tuple[PmuConfiguration, ...]
    records: tuple[Octets, ...]
    """Of each PMU `(T, size)`: its bytes in a data frame."""
    time_ns: NDArray[np.int64]
    data_rate: int


@dataclass(frozen=True, slots=True)
class _MadeScript:
    """Concentrators made up of a tape's PMUs: for each its PMUs' places, and by how many rows they are ahead."""

    streams: tuple[ServedStream, ...]
    tape: _Tape
    places: tuple[tuple[tuple[int, int], ...], ...]

    def rounds(self) -> Iterator[list[Piece]]:
        """Run the tape once."""
        tape = self.tape
        seconds = (tape.time_ns - tape.time_ns[0]) // 1_000_000_000
        cuts = [0, *(np.flatnonzero(np.diff(seconds)) + 1).tolist(), len(seconds)]
        for first, last in pairwise(cuts):
            rows, time_ns = np.arange(first, last), tape.time_ns[first:last]
            soc, rest = np.divmod(time_ns, 1_000_000_000)
            yield [
                Piece(place, time_ns, self._frames(place, rows, soc, (rest + 500) // 1000))
                for place in range(len(self.streams))
            ]

    def _frames(
        self, place: int, rows: NDArray[np.int64], soc: NDArray[np.int64], fracsec: NDArray[np.int64]
    ) -> Octets:
        configuration = self.streams[place].configuration
        octets = np.empty((len(rows), configuration.data_size), np.uint8)
        fields = head(octets)
        fields["sync"], fields["kind"] = SYNC, FrameType.DATA << 4 | configuration.version
        fields["size"], fields["id_code"] = octets.shape[1], configuration.id_code
        fields["soc"], fields["fracsec"] = soc + fracsec // configuration.time_base, fracsec % configuration.time_base
        at = PREFIX_SIZE
        for pmu, ahead in self.places[place]:
            record = self.tape.records[pmu]
            octets[:, at : at + record.shape[1]] = record.take(rows + ahead, axis=0, mode="wrap")
            at += record.shape[1]
        return sealed(octets)


def _record(files: Sequence[Path], channels: Path | None, *, integers: bool) -> _Tape:
    """Bring all PMUs of files onto one grid, and encode each."""
    batches = [b for together in read_rounds([open_source(f, channels) for f in files]) for _, b in _held(together)]
    if not batches:
        raise InputError(f"{files[0]}: no data frame in it could be decoded; `gridsense inspect {files[0]}` says why")
    rates = {b.rate_hz for b in batches}
    rate_hz = batches[0].rate_hz
    if len(rates) > 1 or not rate_hz > 0:
        found = ", ".join(f"{r:g}" for r in sorted(rates))
        raise UsageError(f"--concentrators: the streams of the file report at {found} Hz; name files of one rate")
    origin_ns = midnight(int(min(b.time_ns.min() for b in batches)))
    first = int(min(slots(b.time_ns, rate_hz, origin_ns).min() for b in batches))
    last = int(max(slots(b.time_ns, rate_hz, origin_ns).max() for b in batches))
    count = last - first + 1
    tables = list({id(b.table): b.table for b in batches}.values())
    pmus = list(dict.fromkeys(pmu for table in tables for pmu in table.pmus))
    values = sum(len(p.channels) for p in pmus) * count
    if values * 4 > MADE_BYTES:
        raise UsageError(
            f"--concentrators: {count:,} reporting times of {len(pmus)} PMUs are too much to hold in memory;"
            " cut the file shorter, some minutes are enough"
        )
    time_ns = origin_ns + np.rint(np.arange(first, last + 1) * (1e9 / rate_hz)).astype(np.int64)
    by_pmu: dict[Pmu, list[tuple[int, FrameBatch]]] = {}
    for batch in batches:
        for s, pmu in enumerate(batch.table.pmus):
            by_pmu.setdefault(pmu, []).append((s, batch))
    names = _unique([pmu.name for pmu in pmus])
    made, records = [], []
    for pmu, name in zip(pmus, names, strict=True):
        width = len(pmu.channels)
        held = np.full((count, 1, width), np.nan, np.float64)
        stat = np.full((count, 1), _ABSENT, np.uint16)
        for s, batch in by_pmu[pmu]:
            slot = slots(batch.time_ns, rate_hz, origin_ns) - first
            held[slot, 0] = batch.values[:, s, :width]
            stat[slot, 0] = batch.stat[:, s]
        table = ChannelTable((replace(pmu, station=name),))
        flags = np.zeros(count, np.uint8)
        batch = FrameBatch(table, rate_hz, time_ns, flags, stat, held, time_ns)
        try:
            encoder = made_encoder(table, rate_hz, 1)
            if integers:
                encoder = _in_integers(encoder, batch)
            octets = np.frombuffer(encoder.encode(batch), np.uint8).reshape(count, -1)
        except FrameError as error:
            raise InputError(f"{files[0]}: {name} cannot be said in C37.118: {error}") from error
        made.append(encoder.configuration.pmus[0])
        records.append(np.ascontiguousarray(octets[:, PREFIX_SIZE:-2]))
    data_rate = round(rate_hz) if rate_hz >= 1 else -round(1 / rate_hz)
    return _Tape(tuple(made), tuple(records), time_ns, data_rate)


def _held(together: list[tuple[str, FrameBatch]]) -> list[tuple[str, FrameBatch]]:
    return [(name, batch) for name, batch in together if len(batch.time_ns)]


def _in_integers(encoder: Encoder, batch: FrameBatch) -> Encoder:
    """Phasors as 16-bit magnitude and angle, scaled so that the largest fits."""
    pmu = encoder.configuration.pmus[0]
    places = encoder.places
    if places is None or not pmu.phasors:
        return encoder
    largest = np.zeros(len(pmu.phasors))
    for p in range(len(pmu.phasors)):
        place = int(places[0, 2 * p])
        if place < batch.values.shape[2]:
            magnitude = np.abs(batch.values[:, 0, place])
            largest[p] = np.max(magnitude, initial=0.0, where=np.isfinite(magnitude))
    steps = np.maximum(np.ceil(largest / _COUNTS * 1e5), 1) / 1e5
    phasors = tuple(replace(d, scale=float(scale)) for d, scale in zip(pmu.phasors, steps, strict=True))
    own = replace(pmu, phasors=phasors, float_phasors=False)
    return replace(encoder, configuration=replace(encoder.configuration, pmus=(own,)))


def _sayable(configuration: ConfigurationFrame) -> ConfigurationFrame:
    """As CFG-2 where that can say it, else as CFG-3."""
    if configuration.data_size > MAX_SIZE:
        raise ConfigurationError(
            f"a data frame of {configuration.data_size:,} bytes exceeds {MAX_SIZE:,}: serve fewer PMUs in a stream"
        )
    try:
        encode_configuration(configuration)
    except ConfigurationError:
        configuration = replace(configuration, kind=FrameType.CFG3)
        encode_configuration(configuration)
    return configuration


def _unique(names: Sequence[str]) -> list[str]:
    """Put a number behind each name that comes again."""
    taken, out = set(names), []
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        unique = name
        if seen[name] > 1:
            while unique in taken:
                unique = f"{name} ({seen[name]})"
                seen[name] += unique in taken
            taken.add(unique)
        out.append(unique)
    return out


def _unique_codes(codes: Sequence[int]) -> list[int]:
    """Give a free ID code to each that comes again or has none."""
    taken: set[int] = set()
    own_codes = set(codes)
    free = (code for code in range(1, _CODES + 1) if code not in own_codes)
    out = []
    for code in codes:
        own = code if 0 < code <= _CODES and code not in taken else next(free)
        taken.add(own)
        out.append(own)
    return out
