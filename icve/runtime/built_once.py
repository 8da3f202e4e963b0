"""Files that one process makes and all others open: indices, which everybody would otherwise make for himself."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from icve.runtime.atomic import remove_abandoned, whole_file
from icve.runtime.locks import locked

Opened = TypeVar("Opened")


def built_once(
    files: Sequence[Path], opened: Callable[[Path], Opened | None], build: Callable[[Path], object]
) -> Opened | None:
    """Open a file, which the first process that comes makes where it is missing or not right, while others wait.

    Args:
        files: where it may be: the first place that can be written to gets it.
        opened: opens a file; gives None for one that is not there, stale or damaged.
        build: writes the file under the name it is given. It may raise, to all.

    Returns:
        The opened file; None where no place can be written to.
    """
    for file in files:
        if (there := opened(file)) is not None:
            return there
    for file in files:
        try:
            with locked(file.with_name(f"{file.name}.lock")):
                if (there := opened(file)) is not None:
                    return there
                remove_abandoned(file)
                with whole_file(file) as temporary:
                    build(temporary)
        except OSError:  # no room, no permission, no locks there
            continue
        if (there := opened(file)) is not None:
            return there
    return None


def user_cache(*parts: str) -> Path:
    """A place in the user's folder for what can be made again (``$XDG_CACHE_HOME``)."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "icve", *parts)
