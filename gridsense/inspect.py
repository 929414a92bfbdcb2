"""What a file holds, for people and for programs.

In: a capture, an archive or a folder of archives. Out: one `Report`, as JSON or as tables on a terminal. It judges no
value.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gridsense.errors import UsageError
from streams.archives import Archive, Plan, is_archive, measure, open_archive
from streams.archives.folder import Folder, measure_chain, open_folder
from streams.captures import summary
from streams.channels import Pmu, Quantity


class PmuReport(msgspec.Struct, frozen=True):
    """One PMU.

    Attributes
    ----------
    id_code
        C37.118 ID code; 0 where the file states none.
    station
        Station name.
    phasors
        Number of phasors (magnitude, angle or both).
    analogs
        Number of analogs, powers among them.
    digitals
        Number of digital words.
    nominal_hz
        50 or 60.
    """

    id_code: int
    station: str
    phasors: int
    analogs: int
    digitals: int
    nominal_hz: int


class ColumnReport(msgspec.Struct, frozen=True):
    """What a column of somebody else's table was taken for.

    Attributes
    ----------
    column
        Its name in the file.
    pmu
        PMU.
    quantity
        Quantity, or ``stat``.
    phase
        Phase or component, or empty.
    unit
        Unit of the values after reading.
    scale
        What the file's values are multiplied by.
    """

    column: str
    pmu: str
    quantity: str
    phase: str
    unit: str
    scale: float


class Report(msgspec.Struct, frozen=True, omit_defaults=False):
    """What a file holds.

    Attributes
    ----------
    file
        The file.
    format
        ``capture``, ``parquet``, ``csv``, ``comtrade`` or ``folder``.
    frames_total
        Intact frames of all types.
    frames_by_type
        The same by type.
    frames_decoded
        Data frames that became values.
    crc_errors
        Frames whose check word did not fit.
    bytes_skipped
        Bytes that belong to no frame.
    refused
        Refused frames by reason.
    rate_hz
        Reporting rate, frames a second.
    first_time
        Earliest time stamp, RFC 3339, UTC.
    last_time
        Latest.
    pmus
        The measuring devices.
    columns
        Of somebody else's table: what its columns were taken for.
    notes
        What was assumed or is worth knowing, in sentences.
    """

    file: str
    format: str
    frames_total: int
    frames_by_type: dict[str, int]
    frames_decoded: int
    crc_errors: int
    bytes_skipped: int
    refused: dict[str, int]
    rate_hz: float | None
    first_time: str | None
    last_time: str | None
    pmus: tuple[PmuReport, ...]
    columns: tuple[ColumnReport, ...] = ()
    notes: tuple[str, ...] = ()


def inspect(path: Path, channels: Path | None = None) -> Report:
    """Find out what a file holds.

    Parameters
    ----------
    path
        A capture, an archive or a folder of archives, told apart by what they hold.
    channels
        Map of the columns of somebody else's table, or None.

    Returns
    -------
    Report
        For `show` or as JSON.

    Raises
    ------
    UsageError
        If a map is given for a capture or a folder.
    """
    if path.is_dir():
        if channels is not None:
            raise UsageError(f"{path}: is a folder of archives; --channels is for tables")
        return _of_folder(open_folder(path))
    if is_archive(path):
        return _of_archive(open_archive(path, channels))
    if channels is not None:
        raise UsageError(f"{path}: is a capture; --channels is for tables")
    found = summary(path)
    notes = (f"{found.packets_skipped} packets could not be read",) if found.packets_skipped else ()
    return Report(
        file=str(path),
        format="capture",
        frames_total=found.frames_total,
        frames_by_type=found.frames_by_type,
        frames_decoded=found.frames_decoded,
        crc_errors=found.crc_errors,
        bytes_skipped=found.bytes_skipped,
        refused=found.refused,
        rate_hz=found.rate_hz,
        first_time=found.first_time,
        last_time=found.last_time,
        pmus=tuple(PmuReport(p.id_code, p.station, p.phasors, p.analogs, p.digitals, p.nominal_hz) for p in found.pmus),
        notes=notes,
    )


def _of_archive(archive: Archive) -> Report:
    span = measure(archive)
    description = archive.description
    return Report(
        file=str(archive.path),
        format=archive.form,
        frames_total=span.frames,
        frames_by_type={"data": span.frames},
        frames_decoded=span.frames,
        crc_errors=0,
        bytes_skipped=0,
        refused={},
        rate_hz=description.rate_hz,
        first_time=_rfc3339(span.first_ns),
        last_time=_rfc3339(span.last_ns),
        pmus=tuple(_pmu(p) for p in description.table.pmus),
        columns=_columns(archive.plan),
        notes=archive.notes,
    )


def _of_folder(folder: Folder) -> Report:
    spans = [measure_chain(chain) for chain in folder.chains]
    frames = sum(span.frames for span in spans)
    rates = sorted({chain.description.rate_hz for chain in folder.chains})
    days = sorted({p.parent.name.removeprefix("date=") for chain in folder.chains for p in chain.partitions})
    pmus = dict.fromkeys(pmu for chain in folder.chains for pmu in chain.description.table.pmus)
    notes = [f"{len(days)} days, {days[0]} to {days[-1]}" if len(days) > 1 else f"one day, {days[0]}"]
    for name, position in folder.positions.items():
        of = f"{name.replace('=', ' ')} of the log" if name else "the log"
        notes.append(f"whole up to offset {position:,} of {of}")
    if len(rates) > 1:
        notes.append(f"streams of {', '.join(f'{rate:g}' for rate in rates)} Hz stand side by side")
    return Report(
        file=str(folder.path),
        format="folder",
        frames_total=frames,
        frames_by_type={"data": frames},
        frames_decoded=frames,
        crc_errors=0,
        bytes_skipped=0,
        refused={},
        rate_hz=rates[0] if len(rates) == 1 else None,
        first_time=_rfc3339(min((s.first_ns for s in spans if s.first_ns is not None), default=None)),
        last_time=_rfc3339(max((s.last_ns for s in spans if s.last_ns is not None), default=None)),
        pmus=tuple(_pmu(pmu) for pmu in pmus),
        notes=tuple(notes),
    )


def _columns(plan: Plan | None) -> tuple[ColumnReport, ...]:
    if plan is None:
        return ()
    return tuple(
        ColumnReport(p.column, p.pmu, str(p.quantity or "stat"), str(p.phase), p.unit, p.scale) for p in plan.placements
    )


def _pmu(pmu: Pmu) -> PmuReport:
    quantities = [c.quantity for c in pmu.channels]
    voltages = max(quantities.count(q) for q in (Quantity.VOLTAGE_MAGNITUDE, Quantity.VOLTAGE_ANGLE))
    currents = max(quantities.count(q) for q in (Quantity.CURRENT_MAGNITUDE, Quantity.CURRENT_ANGLE))
    analogs = sum(quantities.count(q) for q in (Quantity.ANALOG, Quantity.ACTIVE_POWER, Quantity.REACTIVE_POWER))
    digitals = quantities.count(Quantity.DIGITAL)
    return PmuReport(pmu.id_code, pmu.station or pmu.name, voltages + currents, analogs, digitals, pmu.nominal_hz)


def _rfc3339(time_ns: int | None) -> str | None:
    if time_ns is None:
        return None
    return f"{np.datetime64(time_ns // 1000, 'us')}Z" if time_ns % 1000 == 0 else f"{np.datetime64(time_ns, 'ns')}Z"


def show(report: Report, console: Console) -> None:
    """Draw a report for people.

    Parameters
    ----------
    report
        From `inspect`.
    console
        Where to.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    by_type = ", ".join(f"{count:,} {kind}" for kind, count in sorted(report.frames_by_type.items()))
    facts.add_row("file", Text(f"{report.file} ({report.format})"))
    facts.add_row("frames", f"{report.frames_total:,} ({by_type})" if by_type else "none")
    facts.add_row(
        "decoded", Text(f"{report.frames_decoded:,} data frames", style="" if report.frames_decoded else "red")
    )
    facts.add_row("rate", "unknown" if report.rate_hz is None else _rate(report.rate_hz))
    if report.first_time and report.last_time:
        elapsed_s = (np.datetime64(report.last_time[:-1]) - np.datetime64(report.first_time[:-1])) / np.timedelta64(
            1, "s"
        )
        facts.add_row("time", f"{report.first_time} to {report.last_time} ({_duration(float(elapsed_s))})")
    faults = {"CRC errors": report.crc_errors, "bytes skipped": report.bytes_skipped}
    faults |= {f"refused: {reason}": n for reason, n in report.refused.items() if reason != "crc"}
    for name, count in faults.items():
        facts.add_row(name, Text(f"{count:,}", style="green" if not count else "yellow"))
    console.print(facts)
    if report.pmus:
        console.print(_pmu_table(report.pmus))
    if report.columns:
        console.print(_column_table(report.columns))
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"))


def show_plan(plan: Plan, console: Console) -> None:
    """Draw what the columns of a table were taken for.

    Parameters
    ----------
    plan
        Guessed, or from a map.
    console
        Where to.
    """
    console.print(_column_table(_columns(plan)))


def _pmu_table(pmus: tuple[PmuReport, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{len(pmus):,} PMU{'s' if len(pmus) != 1 else ''}", title_justify="left")
    table.add_column("ID code", justify="right")
    table.add_column("station")
    for name in ("phasors", "analogs", "digitals", "nominal Hz"):
        table.add_column(name, justify="right")
    for p in pmus:
        counts = (str(n) if n else "-" for n in (p.phasors, p.analogs, p.digitals))
        table.add_row(str(p.id_code or "-"), Text(p.station), *counts, str(p.nominal_hz))
    return table


def _column_table(columns: tuple[ColumnReport, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title="columns are taken as", title_justify="left")
    for name in ("column", "PMU", "quantity", "phase", "unit"):
        table.add_column(name)
    for c in columns:
        unit = f"{c.unit} (times {c.scale:g})" if c.scale != 1 else c.unit
        table.add_row(*(Text(cell) for cell in (c.column, c.pmu, c.quantity.replace("_", " "), c.phase, unit)))
    return table


def _rate(rate_hz: float) -> str:
    return f"{rate_hz:g} frames a second" if rate_hz >= 1 else f"a frame every {1 / rate_hz:g} s"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
