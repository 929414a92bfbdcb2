"""Poisons a topic of frames: what cannot be used is put aside with its reason, and the streams do not notice.

The bundled demo is written as a gateway would have written it, with a configuration that changes in mid-stream: that
is the clean sequence. Into it come records that nobody can use, one in a hundred: bytes that are no frame, frames that
were damaged, cut short, or are of an unknown ID code, of another layout or of a connection that nobody configured,
configurations that contradict themselves, records without a byte, and some of 10 MB. An embedded processor reads the
clean sequence; another one, and a group on a real Kafka, read the poisoned one.

All must find the same events and the same scores, to the last bit, and exactly what came in must be put aside, each
record with its reason. The exit status is 1 where that is not so, 2 where it could not be tried. Needs Java 17 and, the
first time, Maven; with `--embedded` neither.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

try:
    import pyarrow as pa
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from gridsense.config import load
    from gridsense.errors import GridSenseError
    from gridsense.log_opening import kafka_settings, topic_specs
    from gridsense.processor import DEAD_BYTES, Step
    from gridsense.replaying import Replay, Settings
    from gridsense.services.processing import process
    from gridsense.simulator.script import read_script
    from gridsense.works import scores
    from scripts.broker.cluster import BrokerError, Cluster
    from scripts.broker.jars import KafkaMissingError
    from scripts.check.kill_embedded import Events, compare_events
    from scripts.faults.kafka import entries, put_aside, told
    from scripts.faults.line import (
        DEMO,
        PROCESSOR,
        Change,
        CheckError,
        Service,
        changes,
        write_settings,
    )
    from streams.c37118.configuration import decode_configuration, encode_configuration
    from streams.c37118.frame import PREFIX_SIZE, FrameType, read_prefix, wrap
    from streams.errors import StreamsError
    from streams.kafka import topics
    from streams.kafka.log import KafkaLog
    from streams.log import DEAD_LETTERS, FRAMES, SCORES, Entry, Log, Record
    from streams.sqlite_log import open_log
except ImportError:
    own = ROOT / ".venv" / "bin" / "python"
    if not own.exists() or Path(sys.prefix) == own.parents[1]:
        raise
    os.execv(own, [str(own), *sys.argv])  # noqa: S606 - any Python may start this; the project's own runs it

SHARE = 0.01
"""Of the records, as many are added that cannot be used."""
HUGE, HUGE_BYTES = 3, 10 << 20
"""So many records of this size, whatever the share."""
STRANGER = "nobody's"
"""A connection of which no configuration is known."""
BATCH_BYTES = 4 << 20
PATIENCE_S = 300.0

Maker = Callable[[Record, random.Random], bytes]


class Letter(NamedTuple):
    """What is put aside.

    Attributes
    ----------
    key
        Connection.
    reason
        Why.
    beginning
        Of the record.
    """

    key: str
    reason: str
    beginning: bytes


@dataclass(frozen=True, slots=True)
class Poison:
    """A kind of record that cannot be used.

    Attributes
    ----------
    name
        For people.
    reason
        With which it must be put aside.
    make
        Makes one, beside a record of one sound data frame.
    key
        Of its connection; empty: that of the record beside.
    """

    name: str
    reason: str
    make: Maker
    key: str = ""


def _garbage(_: Record, rng: random.Random) -> bytes:
    """Make bytes of which none can begin a frame."""
    return rng.randbytes(rng.randint(1, 2000)).replace(b"\xaa", b"\x55")


def _damaged(sound: Record, rng: random.Random) -> bytes:
    """Change one bit of the readings, and leave the check word."""
    value = bytearray(sound.value)
    value[rng.randrange(PREFIX_SIZE, len(value) - 2)] ^= 1 << rng.randrange(8)
    return bytes(value)


def _cut_short(sound: Record, rng: random.Random) -> bytes:
    return sound.value[: rng.randrange(PREFIX_SIZE, len(sound.value))]


def _of_another(sound: Record, _: random.Random) -> bytes:
    """Make the frame whole and right, but of an ID code that no configuration names."""
    prefix = read_prefix(sound.value)
    return wrap(FrameType.DATA, prefix.id_code ^ 0x5000, prefix.stamp, sound.value[PREFIX_SIZE:-2])


def _of_another_layout(sound: Record, rng: random.Random) -> bytes:
    """Make the frame whole and right, but with more readings than the configuration says."""
    prefix = read_prefix(sound.value)
    more = rng.randbytes(2 * rng.randint(1, 20))
    return wrap(FrameType.DATA, prefix.id_code, prefix.stamp, sound.value[PREFIX_SIZE:-2] + more)


def _contradicting(sound: Record, _: random.Random) -> bytes:
    """Make a configuration, whole and right, of more PMUs than it holds."""
    prefix = read_prefix(sound.value)
    payload = (1_000_000).to_bytes(4, "big") + (60).to_bytes(2, "big") + bytes(40)
    return wrap(FrameType.CFG2, prefix.id_code, prefix.stamp, payload)


POISONS = (
    Poison("no frame", "garbage", _garbage),
    Poison("wrong check word", "crc", _damaged),
    Poison("cut short", "truncated", _cut_short),
    Poison("unknown ID code", "no_configuration", _of_another),
    Poison("connection that nobody configured", "no_configuration", lambda sound, _: sound.value, STRANGER),
    Poison("layout that was not announced", "size", _of_another_layout),
    Poison("configuration that contradicts itself", "configuration", _contradicting),
    Poison("0 bytes", "empty", lambda *_: b""),
)
"""In turn."""
LARGE = Poison("10 MB", "garbage", lambda *_: b"\x55" * HUGE_BYTES)


@dataclass(frozen=True, slots=True)
class Poisoned:
    """Records, and what of them must be put aside.

    Attributes
    ----------
    records
        In order.
    letters
        Likewise.
    kinds
        How many of each kind of poison, by its name.
    """

    records: list[Record]
    letters: list[Letter]
    kinds: Counter[str]


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader of the poisoned sequence found, against the reader of the clean one.

    Attributes
    ----------
    reader
        Which.
    events
        Changes of events.
    scored
        Ticks that were scored.
    dead
        What was put aside, by reason.
    wrong
        What must not be, a sentence each.
    """

    reader: str
    events: Events
    scored: int
    dead: Counter[str]
    wrong: list[str]


def recorded(files: Sequence[Path], folder: Path) -> list[Record]:
    """Write recordings as a gateway would have, each frame come at its own time.

    Parameters
    ----------
    files
        Captures or archives.
    folder
        For the log that they are written into.

    Returns
    -------
    list[Record]
        All of them: configurations, then each frame by itself.
    """
    with closing(open_log(folder / "recorded.db")) as log:
        Replay(read_script(files), log, Settings(speed=0, stamps=True)).run()
        return [Record(*entry[1:]) for entry in _all(log, FRAMES)]


def with_a_change(records: Sequence[Record], place: float = 0.5) -> list[Record]:
    """Let the first connection change its configuration in mid-stream: its first PMU is called otherwise from there on.

    Parameters
    ----------
    records
        In order; the first of each connection is its configuration.
    place
        Where, as a share of the records.

    Returns
    -------
    list[Record]
        With one more.
    """
    before = records[0]
    configuration = decode_configuration(before.value)
    first, *others = configuration.pmus
    renamed = replace(first, station=f"{first.station[:12]} NEW", change_count=first.change_count + 1)
    value = b"".join(encode_configuration(replace(configuration, pmus=(renamed, *others))))
    at = round(len(records) * place)
    return [*records[:at], Record(records[at - 1].time_ns, before.key, value), *records[at:]]


def poisoned(records: Sequence[Record], seed: int, share: float = SHARE, huge: int = HUGE) -> Poisoned:
    """Put records between others that nobody can use. The same seed makes the same.

    Parameters
    ----------
    records
        In order: configurations, then single frames.
    seed
        Of the places and of what is in them.
    share
        How many, against the others.
    huge
        How many of `LARGE`, beside these.

    Returns
    -------
    Poisoned
        With the clean records all in it, in their order.
    """
    rng = random.Random(seed)  # noqa: S311 - it need not be secret
    sound = [n for n, record in enumerate(records) if read_prefix(record.value).frame_type is FrameType.DATA]
    count = max(round(len(records) * share) - huge, len(POISONS))
    kinds = [POISONS[n % len(POISONS)] for n in range(count)] + [LARGE] * huge
    rng.shuffle(kinds)
    behind = dict(zip(sorted(rng.sample(sound, len(kinds))), kinds, strict=True))
    out: list[Record] = []
    letters: list[Letter] = []
    for n, record in enumerate(records):
        out.append(record)
        if (poison := behind.get(n)) is not None:
            bad = Record(record.time_ns, poison.key or record.key, poison.make(record, rng))
            out.append(bad)
            letters.append(Letter(bad.key, poison.reason, bad.value[:DEAD_BYTES]))
    return Poisoned(out, letters, Counter(poison.name for poison in kinds))


def _all(log: Log, topic: str) -> Iterator[Entry]:
    at = 0
    while (reading := log.read(topic, at)).next > at:
        if reading.lost:
            raise CheckError(f"{topic}: {reading.lost}")
        yield from reading.entries
        at = reading.next


def _written(log: Log, records: Iterable[Record]) -> None:
    """Write records, so many at once as a log takes well."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if size >= BATCH_BYTES:
            log.append(FRAMES, batch)
            batch, size = [], 0
    log.append(FRAMES, batch)


class _Scores:
    """Takes the scores of a processor down, as a topic would hold them."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def stepped(self, step: Step) -> None:
        """Take them down."""
        self.batches += [scores(output) for output in step.outputs if len(output.scored.ticks.time_ns)]

    def saved(self, took_s: float, size: int, state_bytes: int) -> None:
        """Nothing of it is asked."""

    def save_failed(self) -> None:
        """Likewise."""

    def began(self, how: str) -> None:
        """Likewise."""


def _flat(batches: Iterable[pa.RecordBatch]) -> list[tuple[bytes, int, list[bytes]]]:
    """Put scores together, however they were cut: for each run of batches of one form, the bytes of its columns."""
    runs: list[tuple[bytes, list[pa.RecordBatch]]] = []
    for batch in batches:
        form = (batch.schema.metadata or {}).get(b"pmus", b"") + str(batch.schema.names).encode()
        if not runs or runs[-1][0] != form:
            runs.append((form, []))
        runs[-1][1].append(batch.replace_schema_metadata(None))
    out = []
    for form, run in runs:
        table = pa.Table.from_batches(run)
        columns = [
            (column.combine_chunks().flatten() if pa.types.is_fixed_size_list(column.type) else column)
            .to_numpy(zero_copy_only=False)
            .tobytes()
            for column in table.combine_chunks().columns
        ]
        out.append((form, len(table), columns))
    return out


@dataclass(frozen=True, slots=True)
class Run:
    """What a processor said of a sequence.

    Attributes
    ----------
    changes
        Of events.
    scores
        For each run of ticks of the same PMUs: their names and those of the columns, how many ticks, the columns.
    letters
        What it put aside.
    """

    changes: list[Change]
    scores: list[tuple[bytes, int, list[bytes]]]
    letters: list[Letter]


def embedded(folder: Path, records: Iterable[Record], learn_s: float) -> Run:
    """Let an embedded processor read records, to their end.

    Parameters
    ----------
    folder
        For its log and its store.
    records
        In order.
    learn_s
        Seconds to learn from.

    Returns
    -------
    Run
        What it said.
    """
    write_settings(folder, learn_s=learn_s, snapshot_s=30.0)
    config = load(folder / "gridsense.toml", environ={}).config
    with closing(open_log(config.log_path)) as log:
        _written(log, records)
    ended, seen = threading.Event(), _Scores()
    ended.set()
    process(config, threading.Event(), ended=ended, observers=[seen])
    with closing(open_log(config.log_path)) as log:
        letters = [_letter(entry) for entry in _all(log, DEAD_LETTERS)]
    return Run(changes(config.store_path), _flat(seen.batches), letters)


def grouped(folder: Path, cluster: Cluster, prefix: str, records: Iterable[Record], learn_s: float) -> Run:
    """Let a group of one on Kafka read records, to their end.

    Parameters
    ----------
    folder
        For its settings.
    cluster
        Started.
    prefix
        Of topics that nobody else uses.
    records
        In order.
    learn_s
        Seconds to learn from.

    Returns
    -------
    Run
        What it said.

    Raises
    ------
    CheckError
        If it ended with an error.
    """
    # No marks: of a sequence that is over nobody need say that time passes.
    keys = f'prefix = "{prefix}"\nreplication = 1\npartitions = 1\nidle = "1h"'
    write_settings(folder, learn_s=learn_s, log=f"kafka://{cluster.servers}", kafka=keys, snapshot_s=30.0)
    config = load(folder / "gridsense.toml", environ={}).config
    settings = kafka_settings(config)
    topics.create(settings, topic_specs(config))
    with closing(KafkaLog(settings)) as log:
        _written(log, records)
    with Service(folder, PROCESSOR, "run", "--once") as processor:
        processor.start()
        if status := processor.wait(PATIENCE_S):
            raise CheckError(f"the processor ended with {status}: {' | '.join(processor.said()[-5:])}")
    have, strangers = told(settings)
    if strangers:
        raise CheckError(f"{settings.topic('pmu.events')} holds {strangers} records that are no events")
    batches = [batch for entry in entries(settings, SCORES) for batch in pa.ipc.open_stream(entry.value)]
    return Run(have, _flat(batches), [_letter(entry) for entry in put_aside(settings)])


def _letter(entry: Entry) -> Letter:
    return Letter(entry.key, entry.note.partition(":")[0], entry.value)


def judge(reader: str, run: Run, clean: Run, letters: Sequence[Letter]) -> Found:
    """Hold what was said of a poisoned sequence against what was said of the clean one.

    Parameters
    ----------
    reader
        Who said it.
    run, clean
        What was said.
    letters
        What must have been put aside.

    Returns
    -------
    Found
        The figures, and what is wrong.
    """
    events = compare_events(run.changes, clean.changes)
    scored = sum(rows for _, rows, _ in run.scores)
    missing, strange = Counter(letters) - Counter(run.letters), Counter(run.letters) - Counter(letters)
    of = f"of {events.straight} changes of events"
    wrong = {
        "no event was found: nothing was tried": not events.straight,
        "nothing was scored: nothing was tried": not scored,
        f"{events.lost} {of} are lost": events.lost,
        f"{events.doubled} changes of events are doubled, or were never to be": events.doubled,
        f"{events.differing} {of} say something else": events.differing,
        "the scores are not those of the clean sequence": run.scores != clean.scores,
        f"{missing.total()} records are not put aside as they should be, such as {_some(missing)}": missing,
        f"{strange.total()} are put aside that should not be, or not so, such as {_some(strange)}": strange,
    }
    dead = Counter(letter.reason for letter in run.letters)
    return Found(reader, events, scored, dead, [words for words, is_so in wrong.items() if is_so])


def _some(letters: Counter[Letter]) -> str:
    return ", ".join(f"{one.key} {one.reason} {one.beginning[:8].hex()}" for one in list(letters)[:3])


def check(  # noqa: PLR0917 (called by the command line and by the test alone)
    folder: Path,
    clean: Sequence[Record],
    seed: int,
    learn_s: float,
    cluster: Cluster | None,
    prefix: str,
    say: Callable[[str], object],
) -> tuple[Poisoned, list[Found]]:
    """Let everybody read.

    Parameters
    ----------
    folder
        Empty.
    clean
        From `with_a_change`.
    seed
        Of the poison.
    learn_s
        Seconds to learn from.
    cluster
        Started; None to try the embedded processor alone.
    prefix
        Of topics there that nobody else uses.
    say
        Says how far it is.

    Returns
    -------
    tuple[Poisoned, list[Found]]
        What was read, and what came of it. A `CheckError` says that it could not be done.

    Raises
    ------
    CheckError
        If something of the clean sequence is put aside.
    """
    bad = poisoned(clean, seed)
    say("an embedded processor reads the clean sequence")
    straight = embedded(folder / "clean", clean, learn_s)
    if straight.letters:
        raise CheckError(f"of the clean sequence this is put aside: {_some(Counter(straight.letters))}")
    say("another one reads the poisoned one")
    found = [judge("embedded", embedded(folder / "poisoned", bad.records, learn_s), straight, bad.letters)]
    if cluster is not None:
        say("so does a group on Kafka")
        run = grouped(folder / "kafka", cluster, prefix, bad.records, learn_s)
        found.append(judge("Kafka", run, straight, bad.letters))
    return bad, found


def show(console: Console, bad: Poisoned, found: Sequence[Found]) -> None:
    """Print the figures for people."""
    reasons = {poison.name: poison.reason for poison in (*POISONS, LARGE)}
    table = Table("poison", "records", "put aside as", box=SIMPLE_HEAD, pad_edge=False)
    table.columns[1].justify = "right"
    for name, count in sorted(bad.kinds.items()):
        table.add_row(name, f"{count:,}", reasons[name])
    table.add_row("all", f"{bad.kinds.total():,} of {len(bad.records):,}", "")
    console.print(table)
    table = Table("", *(one.reader for one in found), box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for reason in sorted({reason for one in found for reason in one.dead}):
        table.add_row(f"put aside: {reason}", *(f"{one.dead[reason]:,}" for one in found))
    for name, figure in (
        ("changes of events, clean", "straight"),
        ("  lost", "lost"),
        ("  doubled", "doubled"),
        ("  differing", "differing"),
    ):
        table.add_row(name, *(f"{getattr(one.events, figure):,}" for one in found))
    table.add_row("ticks scored", *(f"{one.scored:,}" for one in found))
    console.print(table)


def as_json(bad: Poisoned, found: Sequence[Found]) -> str:
    """Write the figures as one line of JSON."""
    figures = {
        "records": len(bad.records),
        "poisoned": bad.kinds.total(),
        "kinds": dict(bad.kinds),
        **{
            one.reader.lower(): {
                "changes": one.events.straight,
                "lost": one.events.lost,
                "doubled": one.events.doubled,
                "differing": one.events.differing,
                "ticks": one.scored,
                "dead": dict(one.dead),
                "broken": one.wrong,
            }
            for one in found
        },
    }
    return json.dumps(figures)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="poison_kafka.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--embedded", action="store_true", help="without Kafka")
    parser.add_argument("--quick", action="store_true", help="a third of the recording, within a minute")
    parser.add_argument("--seed", type=int, default=1, help="of the poison and its places (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the figures")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Check, and say what came of it."""
    args = parse(arguments)
    aside = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gridsense-poison-")))
        try:
            records = recorded([DEMO], folder)
            clean = with_a_change(records[: len(records) // 3] if args.quick else records)
            cluster = None if args.embedded else stack.enter_context(Cluster(folder / "cluster"))
            bad, found = check(folder, clean, args.seed, 60.0, cluster, "poisoned.", aside.print)
        except (BrokerError, CheckError, GridSenseError, KafkaMissingError, StreamsError) as error:
            print(f"poison_kafka: {error}", file=sys.stderr)
            return 2
    show(Console(soft_wrap=not sys.stdout.isatty()), bad, found)
    for one in found:
        for words in one.wrong:
            print(f"{one.reader}: {words}")
    if args.json:
        print(as_json(bad, found))
    return 1 if any(one.wrong for one in found) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
