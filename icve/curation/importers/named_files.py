"""Files that a row names: where they lie, and whether they are videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from icve.curation.stage import Rejected
from icve.data.manifest import ManifestError, relative_path, resolve_path
from icve.runtime.storage.files import file_state, is_plain


class PairFiles:
    """Finds the files of rows below a root.

    Args:
        root: folder that all files lie in.
        folders: below the root that paths are relative to, in the order to try them; the table's own comes last.
        given: columns whose paths are relative to one folder that is known.
        variants: other spellings of a path.
        look: whether files must be there; otherwise the first place is taken unseen.
    """

    def __init__(
        self,
        root: Path,
        folders: Sequence[str],
        given: Mapping[str, str],
        variants: Callable[[str], list[str]],
        look: bool = True,
    ) -> None:
        self.root, self.folders, self.given, self.variants, self.look = root, folders, given, variants, look
        self._last: dict[str, int] = {}  # where the column's last file was is where its next one is

    def places(self, column: str, text: str, table: Path) -> list[str]:
        """Paths below the root that a row's path may stand for. Raises ManifestError if it leaves the root."""
        if os.path.isabs(text):
            return [relative_path(text, self.root)]
        path = PurePosixPath(text)
        if ".." in path.parts:
            raise ManifestError(f"{text!r} must be relative and without '..'.")
        folders = [self.given[column]] if column in self.given else [*self.folders, self._folder_of(table)]
        places = [
            (PurePosixPath(folder) / variant).as_posix() for folder in folders for variant in self.variants(str(path))
        ]
        return list(dict.fromkeys(places))

    def wanted(self, column: str, text: str, table: Path) -> list[tuple[str, str]]:
        """(path that an archive may know the file by, place to unpack it to), the likelier first."""
        places = self.places(column, text, table)
        names = [(place, place) for place in places]
        # Archives may hold the paths as rows give them, whichever folder they are to be unpacked in.
        names += [(name, places[0]) for name in self.variants(str(PurePosixPath(text))) if "/" in name]
        return names

    def find(self, column: str, text: str, table: Path) -> str | Rejected:
        """The file's path relative to the root, or why there is none."""
        try:
            places = self.places(column, text, table)
            if not self.look:
                return places[0]
            last = self._last.get(column, 0)
            for number in (last, *range(len(places))):
                if number < len(places) and _is_file(self.root / places[number]):
                    resolve_path(self.root, places[number])
                    self._last[column] = number
                    return places[number]
        except ManifestError as error:
            return Rejected("path leaves the root", f"{column}: {error}")
        elsewhere = f" and not in {len(places) - 1} other places" if len(places) > 1 else ""
        # Transient: a download may be completed, so a rerun looks again.
        return Rejected("missing file", f"{column}: there is no {places[0]}{elsewhere}", transient=True)

    def _folder_of(self, table: Path) -> str:
        try:
            return relative_path(table.parent, self.root)
        except ManifestError:
            return ""


def _is_file(path: Path) -> bool:
    if is_plain(path):
        return os.path.isfile(path)
    try:
        file_state(path)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True
