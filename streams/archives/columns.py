"""Column names of an archive: a PMU's channel to a column and back.

In: PMU names, channel names and quantities. Out: `<pmu>.<channel>.<quantity>`, unique, and reversible without the
file's metadata. It reads no file and knows no values.
"""

from __future__ import annotations

import re
from collections import Counter
from urllib.parse import unquote

from streams.channels import ChannelTable, Pmu, Quantity
from streams.errors import ArchiveError

TIME = "time"
STAT = "stat"
TIME_FLAGS = "time_flags"
ARRIVAL = "arrival"

_QUANTITIES = frozenset(q.value for q in Quantity)
_RESERVED = re.compile(r"[%.~\x00-\x1f]")


def escape(name: str) -> str:
    """Make a name safe between the dots of a column name.

    Parameters
    ----------
    name
        As the device calls it.

    Returns
    -------
    str
        The name with ``%``, ``.``, ``~`` and control characters as ``%XX``; `unescape` undoes it.
    """
    return _RESERVED.sub(lambda m: f"%{ord(m[0]):02X}", name)


def unescape(name: str) -> str:
    """Undo `escape`.

    Parameters
    ----------
    name
        One part of a column name.

    Returns
    -------
    str
        The name as the device calls it.
    """
    return unquote(name)


def signal_columns(pmu: Pmu) -> tuple[str, ...]:
    """Name the columns of a PMU's channels.

    Parameters
    ----------
    pmu
        Where channels share name and quantity, the second becomes ``<channel>~2``, and so on.

    Returns
    -------
    tuple[str, ...]
        One for each channel, all different.
    """
    seen: Counter[tuple[str, Quantity]] = Counter()
    names = []
    for channel in pmu.channels:
        key = (channel.name, channel.quantity)
        seen[key] += 1
        again = f"~{seen[key]}" if seen[key] > 1 else ""
        names.append(f"{escape(pmu.name)}.{escape(channel.name)}{again}.{channel.quantity}")
    return tuple(names)


def stat_column(pmu: str) -> str:
    """Name the column of a PMU's STAT word.

    Parameters
    ----------
    pmu
        The PMU's name.

    Returns
    -------
    str
        ``<pmu>.stat``.
    """
    return f"{escape(pmu)}.{STAT}"


def split_column(column: str) -> tuple[str, str, Quantity] | None:
    """Take a column name apart.

    Parameters
    ----------
    column
        Name of a column of any table.

    Returns
    -------
    tuple[str, str, Quantity] | None
        PMU, channel and quantity; None where the name is not of that form (a STAT column, or somebody else's).
    """
    parts = column.split(".")
    if len(parts) != 3 or parts[2] not in _QUANTITIES:
        return None
    return unescape(parts[0]), unescape(parts[1].split("~")[0]), Quantity(parts[2])


def source_column(kind: str, source: str, sources: tuple[str, ...]) -> str:
    """Name a column that a source has once for all its PMUs.

    Parameters
    ----------
    kind
        `TIME`, `TIME_FLAGS` or `ARRIVAL`.
    source
        Whose.
    sources
        All sources of the file.

    Returns
    -------
    str
        The bare kind where the file has one source, else ``<source>.<kind>``.
    """
    return kind if len(sources) == 1 else f"{escape(source)}.{kind}"


def sources_of(table: ChannelTable) -> tuple[str, ...]:
    """List the sources of a table.

    Parameters
    ----------
    table
        Its PMUs name their sources.

    Returns
    -------
    tuple[str, ...]
        Each once, in order of first mention.
    """
    return tuple(dict.fromkeys(p.source for p in table.pmus))


def check_names(table: ChannelTable) -> None:
    """Refuse a table whose PMUs cannot be told apart.

    Parameters
    ----------
    table
        About to be written.

    Raises
    ------
    ArchiveError
        If two PMUs have one name.
    """
    for name, count in Counter(p.name for p in table.pmus).items():
        if count > 1:
            raise ArchiveError(f"{count} PMUs are called {name!r}; names must be unique within an archive")
