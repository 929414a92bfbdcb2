"""Files that are there after a crash, or not at all.

In: bytes and paths. Out: files synced to the disk under their names. It knows nothing of what is in them.
"""

from __future__ import annotations

import os
from pathlib import Path

from streams.errors import ArchiveError

PART = ".part"
"""Ending of what is being written; nobody reads it."""


def sync(path: Path) -> None:
    """Have a file or folder on the disk before going on.

    Parameters
    ----------
    path
        Of either.

    Raises
    ------
    ArchiveError
        If the disk does not take it.
    """
    try:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written: {error.strerror or error}") from error


def write(path: Path, content: bytes) -> None:
    """Write a file, replacing one of its name at once.

    Parameters
    ----------
    path
        Its folder is made where there is none.
    content
        All of it.

    Raises
    ------
    ArchiveError
        If it cannot be written; what stood there still does.
    """
    part = path.with_name(path.name + PART)
    try:
        make(path.parent)
        part.write_bytes(content)
        sync(part)
        part.replace(path)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be written: {error.strerror or error}") from error
    sync(path.parent)


def make(folder: Path) -> None:
    """Make a folder, and those above it.

    Parameters
    ----------
    folder
        May be there.

    Raises
    ------
    ArchiveError
        If it cannot be made.
    """
    if folder.is_dir():
        return
    make(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be made: {error.strerror or error}") from error
    sync(folder.parent)


def remove(path: Path) -> None:
    """Remove a file.

    Parameters
    ----------
    path
        May be gone.

    Raises
    ------
    ArchiveError
        If it cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be removed: {error.strerror or error}") from error
