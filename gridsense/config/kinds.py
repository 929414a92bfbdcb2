"""The kinds of values that a configuration is made of: durations, sizes, strict numbers and text.

In: what TOML, the environment or the command line give. Out: seconds, bytes, numbers, text; or what was expected, in
plain words. It knows no key.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, SecretStr, Strict, WithJsonSchema
from pydantic.fields import FieldInfo

from gridsense.detect import seconds
from gridsense.errors import UsageError

HIDDEN = "***"
"""What is shown of a secret."""
LONGEST_S = 10 * 366 * 86_400.0
"""No duration is longer: ten years."""

_NOTHING = re.compile(r"\s*0(?:\.0+)?\s*(?:s|min|h)?\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_UNITS_BYTES = {
    "TB": 10**12,
    "GB": 10**9,
    "MB": 10**6,
    "kB": 10**3,
    "TiB": 1 << 40,
    "GiB": 1 << 30,
    "MiB": 1 << 20,
    "KiB": 1 << 10,
}
_BYTES = {"": 1, "b": 1} | {unit.lower(): number for unit, number in _UNITS_BYTES.items()}
_UNITS_S = {"h": 3600, "min": 60, "s": 1}


def duration_text(duration_s: float) -> str:
    """Write a duration as one would in a file.

    Parameters
    ----------
    duration_s
        At least 0.

    Returns
    -------
    str
        ``72h``, ``5min``, ``0.5s``; ``0`` for nothing.
    """
    if not duration_s:
        return "0"
    unit, size_s = next(((u, s) for u, s in _UNITS_S.items() if duration_s % s == 0), ("s", 1))
    return f"{_plain(duration_s / size_s)}{unit}"


def size_text(size_bytes: int) -> str:
    """Write a number of bytes as one would in a file.

    Parameters
    ----------
    size_bytes
        At least 0.

    Returns
    -------
    str
        ``64MiB``, ``256kB``; bare digits where no unit fits.
    """
    fitting = [(unit, number) for unit, number in _UNITS_BYTES.items() if size_bytes and size_bytes % number == 0]
    return min([f"{size_bytes // number}{unit}" for unit, number in fitting] + [str(size_bytes)], key=len)


def toml_text(value: Any) -> str:
    """Write a value as TOML, on one line.

    Parameters
    ----------
    value
        Text, number, flag, list or table.

    Returns
    -------
    str
        What stands right of the equals sign.
    """
    match value:
        case dict():
            pairs = ", ".join(f"{toml_key(str(name))} = {toml_text(item)}" for name, item in value.items())
            return f"{{ {pairs} }}" if pairs else "{}"
        case list() | tuple():
            return f"[{', '.join(map(toml_text, value))}]"
        case bool() | str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            return str(value)


def toml_key(name: str) -> str:
    """Write a key as TOML: quoted where it must be.

    Parameters
    ----------
    name
        Any text.

    Returns
    -------
    str
        One line.
    """
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_text(name)


def written(info: FieldInfo, value: Any) -> str:
    """Write a value, or a limit, as its field's values are written.

    Parameters
    ----------
    info
        The field.
    value
        Number or text.

    Returns
    -------
    str
        With its unit, where the field is a duration or a size.
    """
    serializer: Any = next((it for it in info.metadata if isinstance(it, PlainSerializer)), None)
    return str(serializer.func(value)) if serializer else f"{value:g}" if isinstance(value, float) else str(value)


def choices_of(info: FieldInfo) -> tuple[str, ...]:
    """List the words that a field may be, or may hold.

    Parameters
    ----------
    info
        The field.

    Returns
    -------
    tuple[str, ...]
        Empty where it takes others.
    """
    kind = info.annotation
    inner = get_args(kind)[0] if get_origin(kind) is tuple else kind
    return get_args(inner) if get_origin(inner) is Literal else ()


def _plain(number: float) -> str:
    """Write a number without an exponent."""
    return f"{Decimal(repr(float(number))):f}".removesuffix(".0")


def _hidden(secret: SecretStr) -> str:
    return HIDDEN if secret.get_secret_value() else ""


def _read_duration(value: object) -> object:
    if isinstance(value, str):
        if _NOTHING.fullmatch(value):
            return 0.0
        try:
            value = seconds(value)
        except UsageError as error:
            raise ValueError("must be a duration such as 60s, 5min or 72h") from error
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a duration: a number of seconds, or text such as 60s, 5min or 72h")  # noqa: TRY004 (to pydantic)
    if value > LONGEST_S:
        raise ValueError("must be at most ten years")
    return value


def _read_size(value: object) -> object:
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or match[2].lower() not in _BYTES:
            raise ValueError("must be a size such as 256kB, 64MiB or 50GiB")
        exact = Decimal(match[1]) * _BYTES[match[2].lower()]
        value = int(exact)
        if value != exact:
            raise ValueError("must be a whole number of bytes")
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a size: a whole number of bytes, or text such as 256kB, 64MiB or 50GiB")  # noqa: TRY004 (to pydantic)
    if value > 1 << 60:
        raise ValueError("must be at most 1 EiB")
    return value


def _clean(text: str) -> str:
    if not text or text != text.strip():
        raise ValueError("must not be empty, nor begin or end with a space")
    if not text.isprintable():
        raise ValueError("must be printable, without control characters or special spaces")
    return text


Seconds = Annotated[
    float,
    BeforeValidator(_read_duration),
    PlainSerializer(duration_text, return_type=str, when_used="json"),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(|s|min|h)\s*$"}]}),
]
"""A duration in seconds; written as a number of seconds, or as text with a unit: ``60s``, ``5min``, ``72h``."""

Bytes = Annotated[
    int,
    BeforeValidator(_read_size),
    PlainSerializer(size_text, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 0},
                {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*(|B|[kKMGT]B|[KMGT]iB)\s*$"},
            ]
        }
    ),
]
"""A size in bytes; written as a whole number, or as text with a unit: ``256kB``, ``64MiB``, ``50GiB``."""

Whole = Annotated[int, Strict()]
"""A whole number: neither text nor 5.0."""

Number = Annotated[float, Strict()]
"""A number: no text."""

Flag = Annotated[bool, Strict()]
"""true or false: neither text nor 1."""

Text = Annotated[str, Strict(), AfterValidator(_clean)]
"""Text on one line, not empty."""

Secret = Annotated[
    SecretStr,
    PlainSerializer(_hidden, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "maxLength": 0}),
]
"""Text that is never shown, and stands in no file."""
