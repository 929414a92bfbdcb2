"""The command line: words in, files, tables and exit codes out.

Exit codes: 0 it ran, 1 a check found differences, 2 usage or configuration, 3 input unreadable, 4 a peer unreachable.
Results go to stdout, all else to stderr. Nothing is computed here.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from textwrap import dedent
from typing import Annotated

import msgspec
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from baselines.errors import BaselinesError
from gridsense import convert as converting
from gridsense import detect as detecting
from gridsense import inspect as inspecting
from gridsense.commands.archive import archive
from gridsense.commands.check_config import check_config
from gridsense.commands.gateway import gateway
from gridsense.commands.init import init
from gridsense.commands.model import compare, verify
from gridsense.commands.model import inspect as inspect_model
from gridsense.commands.replay import replay
from gridsense.commands.run import run as run_processor
from gridsense.commands.simulate_pmu import simulate_pmu
from gridsense.commands.topics import check as check_topics
from gridsense.commands.topics import create as create_topics
from gridsense.commands.topics import show as list_topics
from gridsense.commands.train import train
from gridsense.commands.up import up
from gridsense.commands.watch import watch
from gridsense.demo import show as watching
from gridsense.detection import Settings as DetectionSettings
from gridsense.errors import DifferenceError, GridSenseError, PeerError, UsageError
from gridsense.events import rfc3339
from gridsense.pipeline import SCORERS, Scorer, Settings
from gridsense.predictions import PredictionTable
from gridsense.sequence import Model, load_model
from gridsense.sources import open_source
from gridsense.store import EventStore
from models.errors import ModelsError
from streams.archives import Archive
from streams.errors import DeniedError, SettingsError, StreamsError, UnreachableError

EXIT_OK = 0
EXIT_BUG = 1
EXIT_DIFFERS = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_PEER = 4

_INTERRUPTED = 130
LOG_WIDTH = 120
"""Of tables where stdout is no terminal, so that nobody says how wide a line may be."""

app = App(
    name="gridsense",
    help="""Watch a power grid's synchrophasors (IEEE C37.118).

    Files: look into a capture or an archive with `inspect`, bring it into Parquet with `convert`, find what is atypical
    in it with `detect`.

    Live: `init` writes a configuration, `check-config` checks it; `gateway` receives from PMUs into a log, `run`
    processes the log into events, `archive` keeps its frames as Parquet, `watch` shows what is found. `up` does all of
    it in one process; `simulate-pmu` serves a recording as real PMUs would, `replay` writes one into a log. `topics`
    makes the topics of a log in Kafka.

    Options of all commands: `--debug` shows where an error came from.

    Exit codes: 0 it ran, 1 a check found differences, 2 usage, 3 input unreadable, 4 a peer unreachable or refusing.
    """,
    help_format="markdown",
    version=lambda: f"gridsense {version('gridsense-pmu')}",
)


def _command(function: Callable[..., None], to: App = app, name: str | None = None) -> Callable[..., None]:
    """Make a function a command; the Examples of its docstring close its help."""
    _, _, rest = (function.__doc__ or "").partition("    Examples\n    --------\n")
    examples, _, _ = rest.partition("\n\n")
    to.command(function, name=name, help_epilogue=f"Examples:\n\n{dedent(examples)}" if examples else None)
    return function


def exit_code(error: Exception) -> int:
    """Say what the program's exit code tells of an error.

    Parameters
    ----------
    error
        Raised by a command.

    Returns
    -------
    int
        `EXIT_BUG` for what nobody raised on purpose.
    """
    kinds: tuple[tuple[tuple[type[Exception], ...], int], ...] = (
        ((CycloptsError, UsageError, SettingsError), EXIT_USAGE),
        ((PeerError, UnreachableError, DeniedError), EXIT_PEER),
        ((DifferenceError,), EXIT_DIFFERS),
        ((GridSenseError, StreamsError, BaselinesError, ModelsError, OSError), EXIT_INPUT),
    )
    return next((code for classes, code in kinds if isinstance(error, classes)), EXIT_BUG)


@_command
def inspect(
    file: Path,
    /,
    *,
    json: Annotated[bool, Parameter(negative="")] = False,
    channels: Path | None = None,
) -> None:
    """Say what a file holds: frames, PMUs, rate, times, and what is wrong with it.

    Reads captures (.pcap, .pcapng, .PmuCapture, raw C37.118 or IEEE 1344 bytes) and archives (Parquet, CSV), told apart
    by what they hold, not by their names. Of a CSV file it prints what its columns are taken for.

    Examples
    --------
    ```
    gridsense inspect capture.pcap
    gridsense inspect capture.pcap --json | jq .pmus
    gridsense inspect history.csv --channels map.csv
    ```

    Parameters
    ----------
    file
        The capture or archive.
    json
        Print one JSON object instead of tables.
    channels
        For tables: a map of their columns, CSV with the header column,pmu,quantity,phase,unit,nominal.
    """
    with _busy("reading"):
        report = inspecting.inspect(file, channels)
    if json:
        sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        inspecting.show(report, Console())


@_command
def convert(file: Path, out: Path, /, *, channels: Path | None = None) -> None:
    """Convert a capture or CSV file to Parquet, or an archive back to C37.118 bytes. Every value as it was sent.

    To .parquet: one row a reporting time; `time` in UTC; a column a signal, `<pmu>.<channel>.<quantity>`, with unit and
    nominal value in its metadata; `<pmu>.stat` beside. Nothing is masked, nothing moved; NaN is what was not sent.
    Several connections in one capture stand side by side (nulls where one sent nothing, its own stamps in
    `<source>.time`) when they share a rate and run forward in time; else each gets `OUT-<source>.parquet`.

    To .c37118, .bin or .raw: the configuration frames, then the data frames in order of time. What came from C37.118
    comes back under its own configuration; for other archives a CFG-2 is made (polar, float32), a CFG-3 where names
    exceed 16 letters or PMUs one frame. Powers become analogs, values per unit stay per unit.

    Times in CSV: ISO 8601 (UTC where no offset stands), or s, ms, us or ns since 1970 by their size.

    Examples
    --------
    ```
    gridsense convert capture.pcap capture.parquet
    gridsense convert history.csv history.parquet --channels map.csv
    gridsense convert capture.parquet again.c37118
    ```

    Parameters
    ----------
    file
        The capture or archive to read.
    out
        The file to write; its ending says what.
    channels
        For tables: a map of their columns, CSV with the header column,pmu,quantity,phase,unit,nominal. Quantities:
        voltage_magnitude, voltage_angle, current_magnitude, current_angle, frequency, rocof, active_power,
        reactive_power, analog, digital. Without a map the names are guessed from, and the guess is printed.
    """
    with _busy("converting") as progress:
        plan, outputs = converting.convert(file, out, channels, progress)
    console = Console(stderr=True)
    if plan is not None and plan.guessed:
        inspecting.show_plan(plan, console)
    for output in outputs:
        console.print(
            f"{output.path}: {output.rows:,} {'reporting times' if output.path.suffix == '.parquet' else 'frames'} "
            f"of {output.pmus:,} PMU{'s' if output.pmus != 1 else ''}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )


@_command
def detect(
    files: Annotated[tuple[Path, ...], Parameter(required=True)],
    /,
    *,
    learn: str = "60s",
    reference: Annotated[tuple[Path, ...], Parameter(negative="", show_default=False)] = (),
    scorers: str = "quadratic,sequence",
    model: Path | None = None,
    false_alarms_per_day: float = 1.0,
    scores: Path | None = None,
    predictions: Path | None = None,
    plot: Path | None = None,
    store: Path | None = None,
    channels: Path | None = None,
    typical: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> None:
    """Find what is atypical in captures and archives: one JSON line (CloudEvents 1.0) an event on stdout.

    What is typical is learned from the beginning of the files (`--learn`), or from quiet time of the same PMUs
    (`--reference`). Until it is learned nothing is scored, and that is said. The slower scorers want more: four minutes
    for what shows over ten seconds, 24 minutes for what shows over a minute.

    Two scorers look: `quadratic` holds parabolas fitted to a second (and ten, and a minute) against what is typical,
    `sequence` what came against what a neural network had expected. The bundled network is for 30 frames a second; at
    another rate the quadratic fit scores alone, and that is said.

    Several files are read side by side in event time, as if their sources were live. An event is printed once, when it
    has ended; `end` is null where it lasts to the end of the files.

    Examples
    --------
    ```
    gridsense detect capture.pcap
    gridsense detect day.parquet --learn 5min --plot pictures --scores scores.parquet
    gridsense detect day.parquet --model models/mygrid --predictions expected.parquet
    gridsense detect event.pcap --reference quiet.pcap | jq -r '.data | .onset + " " + .cause + " " + .sentence'
    ```

    Parameters
    ----------
    files
        Captures and archives.
    learn
        Quiet time to learn the newest fit's reference from: 40s, 2min, 1h.
    reference
        Captures or archives of quiet time to learn from instead. Repeat the option for several.
    scorers
        What scores, with commas: quadratic, sequence or both.
    model
        A model's directory, from `gridsense train`, for the sequence scorer; as a rule the bundled one.
    false_alarms_per_day
        How many false events of the grid a day are acceptable. Fewer is less sensitive.
    scores
        Parquet file for all scores: a row a tick, `time`, `grid.<scorer>`, `<pmu>.<scorer>`, in -ln p.
    predictions
        Parquet file for what the network expected of every reading: `time`, `pmu`, `channel`, `unit`, `horizon_s`,
        `observed`, `expected`, `low`, `high` (90 % between). It is large: a row for each reading and horizon, 630 rows
        a PMU and second for seven channels at 30 frames a second and three horizons, about 11 kB.
    plot
        Folder for a picture of each event.
    store
        Event store (SQLite) to add the events to.
    channels
        For tables: a map of their columns, CSV with the header column,pmu,quantity,phase,unit,nominal.
    typical
        Say at the end what is typical of each PMU, on stderr.

    Raises
    ------
    UsageError
        If a number is out of its range.
    """
    if not false_alarms_per_day > 0:
        raise UsageError(f"--false-alarms-per-day {false_alarms_per_day:g}: must be above 0; 1 is usual")
    chosen = _scorers(scorers)
    network = load_model(model) if "sequence" in chosen else None
    if network is None and (predictions or model):
        raise UsageError(f"--scorers {scorers}: --model and --predictions are the sequence scorer's; add sequence")
    settings = Settings(
        source="+".join(f.stem for f in files),
        scorers=chosen,
        model=network,
        learn_s=detecting.seconds(learn),
        detection=DetectionSettings(false_alarms_per_day=false_alarms_per_day),
    )
    console = Console(stderr=True)
    opened = [open_source(f, channels) for f in files]
    for source in opened:
        if isinstance(source, Archive) and source.plan is not None and source.plan.guessed:
            inspecting.show_plan(source.plan, console)
    with ExitStack() as stack:
        sinks: list[detecting.Sink] = [detecting.Lines(_write), *_tables(scores, predictions, network)]
        if plot:
            sinks.append(detecting.Album(plot))
        if store:
            sinks.append(detecting.Memory(stack.enter_context(EventStore(store))))
        learned = None
        if reference:
            with _going("learning", console) as report:
                learned = detecting.learn(settings, [open_source(f, channels) for f in reference], report)
        began = time.perf_counter()
        with _going("detecting", console) as report:
            result = detecting.detect(settings, opened, learned, sinks, report)
        took = time.perf_counter() - began
    causes = Counter(event.cause for event in result.events)
    found = ", ".join(f"{n} {cause}" for cause, n in causes.most_common()) or "none"
    console.print(
        f"{result.frames:,} reporting times, {result.grid_s:,.0f} s of grid in {took:.1f} s "
        f"({result.grid_s / max(took, 1e-9):,.0f} times real time); events: {found}",
        highlight=False,
    )
    lines = [f"{pmu}, {pattern}" for pmu, patterns in result.typical.items() for pattern in patterns]
    lines = [line for line in lines if typical]
    lines += [f"scorer {name}: learning, {s:.0f} s of quiet time are missing" for name, s in result.learning]
    for line in lines:
        console.print(line, highlight=False, markup=False)


for _function in (simulate_pmu, replay, gateway, run_processor, watch, archive, up, init, check_config, train):
    _command(_function)

model = App(name="model", help="Trained models: what one is, whether every engine runs it alike, which is better.")
app.command(model)
_command(inspect_model, model, "inspect")
_command(verify, model)
_command(compare, model)


topics = App(name="topics", help="Kafka's topics: make them as configured, say what differs, list them.")
app.command(topics)
_command(create_topics, topics, "create")
_command(check_topics, topics, "check")
_command(list_topics, topics, "list")


def _scorers(words: str) -> tuple[Scorer, ...]:
    """Read the names of scorers; in which order they stand does not matter."""
    names = {word.strip() for word in words.split(",")}
    for name in names:
        if name not in SCORERS:
            raise UsageError(f"--scorers {words}: {name!r} is no scorer; there are {', '.join(SCORERS)}")
    return tuple(scorer for scorer in SCORERS if scorer in names)


def _tables(scores: Path | None, predictions: Path | None, network: Model | None) -> Iterator[detecting.Sink]:
    """Make the tables that were asked for."""
    if scores:
        yield detecting.ScoreTable(scores)
    if predictions and network:
        yield PredictionTable(predictions, network.spec)


def _write(line: bytes) -> None:
    """Write a line to stdout at once, so that whoever reads along sees it."""
    sys.stdout.write(line.decode())
    sys.stdout.flush()


@_command
def demo(*, speed: float | None = None) -> None:
    """Watch a simulated grid of 54 PMUs for two minutes: faults, trips, an oscillation, and devices that go wrong.

    Learns what is typical, then streams the bundled recording as C37.118 bytes through the pipeline and shows it live.
    Ends by itself, with a summary against what really happened. Where stdout is no terminal, it prints lines instead.

    Parameters
    ----------
    speed
        Times real time; 0 for as fast as it goes. As a rule chosen so that the whole takes about two minutes.
    """
    watching.run(Console(width=None if sys.stdout.isatty() else LOG_WIDTH), speed)


@contextmanager
def _going(what: str, console: Console) -> Iterator[Callable[[detecting.Progress], None]]:
    """Show on a terminal how far a stream is, and how many times real time it goes."""
    columns = (SpinnerColumn(), TextColumn(what), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, state="")
        began = time.perf_counter()

        def report(now: detecting.Progress) -> None:
            speed = now.grid_s / max(time.perf_counter() - began, 1e-9)
            state = f"{rfc3339(now.time_ns)}  {now.frames:,} frames  {speed:,.0f} times real time"
            if now.learning_s > 0:
                state += f"  learning, {now.learning_s:.0f} s missing"
            progress.update(task, state=state)

        yield report


@contextmanager
def _busy(what: str) -> Iterator[converting.Progress]:
    """Show on a terminal's stderr that work goes on; yields what counts the frames."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn(what), TextColumn("{task.fields[frames]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None, frames="")
        done = 0

        def count(frames: int) -> None:
            nonlocal done
            done += frames
            progress.update(task, frames=f"{done:,} frames")

        yield count


def run(tokens: Sequence[str]) -> int:
    """Run one command.

    Parameters
    ----------
    tokens
        The command line without the program's name.

    Returns
    -------
    int
        Exit code.

    Raises
    ------
    Exception
        With ``--debug``: whatever went wrong, as it was raised.
    """
    debug = "--debug" in tokens
    rest = [t for t in tokens if t != "--debug"]
    level = logging.DEBUG if debug else logging.WARNING
    logging.basicConfig(level=level, format="gridsense: %(message)s", stream=sys.stderr, force=True)
    try:
        app(rest, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        if debug:
            raise
        code = exit_code(error)
        sys.stderr.write(f"gridsense: {_sentence(error, code)}\n")
        return code
    return EXIT_OK


def _sentence(error: Exception, code: int) -> str:
    """Say what, which, and what to do: in one line, or in a line for each mistake in a configuration."""
    lines = str(error).splitlines() if isinstance(error, UsageError) else [str(error)]
    message = "\n".join(" ".join(line.split()) for line in lines).strip() or type(error).__name__
    if code == EXIT_BUG and not isinstance(error, DifferenceError):
        return f"internal error: {type(error).__name__}: {message}; run again with --debug and report what it shows"
    if isinstance(error, CycloptsError):
        return f"{message} See gridsense --help."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return message


def main() -> None:
    """Run the program on its command line and exit."""
    sys.exit(run(sys.argv[1:]))
