"""Whether a folder holds what was written: a file in it that has the size and checksum of all others."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from icve.runtime.atomic import whole_file

CONTENTS = "contents.json"
_BLOCK = 1 << 24
_THREADS = 8  # that read files: a checksum takes as long as a fast disk
_SMALL = 1 << 24  # bytes of a file that everybody looks into


def checksum(file: Path) -> int:
    """CRC-32 of a file's bytes."""
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value


def describe(folder: Path, files: Iterable[Path]) -> dict[str, list[int]]:
    """{path in the folder: [bytes, checksum]} of some of its files."""
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, checksum(file)] for file in files}


def write_contents(folder: Path, described: dict[str, list[int]]) -> None:
    """Write down what a folder holds, to disk."""
    with whole_file(folder / CONTENTS) as file:
        file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def find_damage(folder: Path, share: int = 0, of: int = 1, inside: str = "") -> str | None:
    """What is wrong with a folder, in words; None where it is as it was written.

    Args:
        folder: one that `write_contents` has described.
        share, of: of the large files, look into the bytes of this share only, as others do of theirs; 0 of 0 looks at
            their sizes alone.
        inside: look at files only whose path in the folder begins so.
    """
    try:
        contents = json.loads((folder / CONTENTS).read_text(encoding="utf-8"))
        whole = []
        for number, (name, (size, crc)) in enumerate(sorted(contents.items())):
            if not name.startswith(inside):
                continue
            file = folder / name
            if not file.is_file():
                return f"{file} is missing"
            if file.stat().st_size != size:
                return f"{file} has {file.stat().st_size} bytes instead of {size}"
            if size <= _SMALL or (of and number % of == share):
                whole.append((file, crc))
        with ThreadPoolExecutor(_THREADS) as pool:
            for (file, crc), found in zip(whole, pool.map(checksum, [file for file, _ in whole]), strict=True):
                if found != crc:
                    return f"{file} is not what was written (its checksum differs)"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"{folder / CONTENTS} cannot be read ({error})"
    return None
