"""`gridsense init`: a configuration file to begin with, every key in it explained."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from gridsense.config import FILE_NAME, SCHEMA_FILE, example
from gridsense.config import schema as json_schema
from gridsense.errors import UsageError


def init(
    file: Path = Path(FILE_NAME),
    /,
    *,
    force: Annotated[bool, Parameter(negative="")] = False,
    schema: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Write a configuration file to begin with: every key with what it is for, its range and its default.

    Examples
    --------
    ```
    gridsense init
    gridsense init --schema > gridsense.schema.json
    gridsense check-config
    ```

    Parameters
    ----------
    file
        The file to write.
    force
        Write over a file that is there.
    schema
        Print the JSON schema of such files instead, for editors that complete and check while one types.

    Raises
    ------
    UsageError
        If the file is there already.
    """
    if schema:
        sys.stdout.write(json_schema())
        return
    try:
        with file.open("w" if force else "x", encoding="utf-8") as out:
            out.write(example())
    except FileExistsError as error:
        raise UsageError(f"{file} is there already; name another file, or --force to write over it") from error
    console = Console(stderr=True)
    words = f"{file} is written. Name your devices under [[gateway.connections]], then: gridsense check-config {file}"
    console.print(words, soft_wrap=True, markup=False, highlight=False)
    words = f"For editors: gridsense init --schema > {file.parent / SCHEMA_FILE}"
    console.print(words, soft_wrap=True, markup=False, highlight=False)
