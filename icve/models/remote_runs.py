"""Checkpoints, editors and weights behind URLs, copied to the local disk to be read as local ones are.

A run's URL has what its folder has: `checkpoints/step-NNNNNN/`, of which `contents.json` came last, so that one without
it is only half there; `checkpoints/best` holds the name of the best.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from icve.models.run_names import BEST, FOLDER_NAME, LAST, step_of, tell, tell_once
from icve.runtime.folder_contents import CONTENTS, write_contents
from icve.runtime.storage.fetched import DamagedCopy, cached_file, cached_folder, fetch_folder, listed_states
from icve.runtime.storage.remote_file import RemoteState
from icve.runtime.storage.remote_path import RemotePath, as_path

Files = Mapping[str, RemoteState]  # of a folder, by relative name
Contents = dict[str, list[int]]  # size and checksum of a checkpoint's files

_OF_CHECKPOINT = re.compile(r"(?:checkpoints/)?(step-\d+)/(.+)")
# What says how the weights in a file are to be read, beside it.
_BESIDE = ("config.json", "adapter_config.json", "lora_config.json", "base_weights.json")


def on_disk(path: str | os.PathLike, editor: bool = False) -> Path:
    """What a URL means as a checkpoint or as weights, copied to the local cache; a local path as it is.

    Args:
        path: as `icve.models.run_folders.resolve_checkpoint` and `inside_run` take it. Of a run it is the newest whole
            checkpoint; one that is damaged is passed over for the one before it. A model's folder is copied whole.
        editor: of a run take the newest exported checkpoint, if there is one, and of an exported checkpoint the editor
            without the training state.

    Raises:
        FileNotFoundError: there is nothing of that kind.
        ValueError: the checkpoint is damaged, or there is no room for it.
        RemoteError: the server does not give it.
    """
    path = as_path(path)
    if not isinstance(path, RemotePath):
        return path
    path, files = _listed(path)
    if not files:
        return cached_file(path, _BESIDE)
    if runs := _checkpoints(path, files):
        return _newest(path, runs, editor)
    if FOLDER_NAME.fullmatch(path.name) or CONTENTS in files:
        try:
            contents = whole_contents(path, files)
            return _copied(path, files, contents, editor and _exported(contents))
        except DamagedCopy as error:
            raise ValueError(f"The checkpoint {path} is damaged: {error}; name an earlier one.") from error
    if nested := next((name for name in files if re.search(r"/step-\d+/", name)), None):
        run = path / nested.partition("/checkpoints/")[0]
        raise ValueError(f"{path} holds several runs: name one of them, as {run}.")
    return cached_folder(path, files)


def checkpoints_behind(url: RemotePath) -> list[tuple[RemotePath, Files]]:
    """The checkpoints of a run's URL whose upload has ended, with their files, the newest first; none where none are.

    Raises RemoteError.
    """
    try:
        return [entry for entry in _checkpoints(url, listed_states(url)) if CONTENTS in entry[1]]
    except FileNotFoundError:
        return []


def whole_contents(folder: RemotePath, files: Files) -> Contents:
    """Size and checksum of a checkpoint's files, which are all there and have their sizes.

    Raises DamagedCopy where they are not, RemoteError.
    """
    if CONTENTS not in files:
        raise DamagedCopy(f"{folder} is not whole, as its upload has not ended")
    try:
        contents: Contents = {name: [int(size), int(crc)] for name, (size, crc) in _json(folder / CONTENTS).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedCopy(f"{folder / CONTENTS} cannot be read ({error})") from error
    for name, (size, _) in contents.items():
        if name not in files:
            raise DamagedCopy(f"{folder / name} is missing")
        if files[name].size != size:
            raise DamagedCopy(f"{folder / name} has {files[name].size} bytes instead of {size}")
    return contents


def fetch_checkpoint(folder: RemotePath, files: Files, into: Path) -> Path:
    """Copy a checkpoint into a local folder of checkpoints; returns its own.

    Its files are compared with the checksums it was written with. Raises DamagedCopy, ValueError, RemoteError.
    """
    contents = whole_contents(folder, files)
    wanted = {name: files[name] for name in (*contents, CONTENTS)}
    return fetch_folder(folder, wanted, into / folder.name, {name: crc for name, (_, crc) in contents.items()})


def best_behind(url: RemotePath) -> str | None:
    """Name of the checkpoint that a run's URL says is the best. Raises RemoteError."""
    try:
        return (url / "checkpoints" / BEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _listed(path: RemotePath) -> tuple[RemotePath, Files]:
    """What a URL leads to, and the files in it; none for a file."""
    for place in (path, path.parent if path.name == LAST else None):
        if place is not None:
            try:
                return place, listed_states(place)
            except FileNotFoundError:
                continue
    if path.is_file():
        if path.name != BEST:
            return path, {}
        named = path.parent / path.read_text(encoding="utf-8").strip()
        if FOLDER_NAME.fullmatch(named.name):
            return _listed(named)
    raise FileNotFoundError(
        f"There is nothing at {path}; name the URL of a run, a checkpoint, a model folder or a file of weights."
    )


def _checkpoints(path: RemotePath, files: Files) -> list[tuple[RemotePath, Files]]:
    """Checkpoints in the folder of a run or its `checkpoints`, whole or not, the newest first."""
    found: dict[RemotePath, dict[str, RemoteState]] = {}
    for name, state in files.items():
        if match := _OF_CHECKPOINT.fullmatch(name):
            found.setdefault(path / name.removesuffix(f"/{match[2]}"), {})[match[2]] = state
    return sorted(found.items(), key=lambda entry: step_of(entry[0]), reverse=True)


def _newest(path: RemotePath, checkpoints: Iterable[tuple[RemotePath, Files]], editor: bool) -> Path:
    problems: list[str] = []
    whole: list[tuple[RemotePath, Files, Contents]] = []
    for folder, files in checkpoints:
        if CONTENTS in files:  # else its upload has not ended, and may go on
            try:
                whole.append((folder, files, whole_contents(folder, files)))
            except DamagedCopy as error:
                problems.append(str(error))
    if not whole and not problems:
        raise FileNotFoundError(f"{path} holds no whole checkpoint: an upload has begun and not ended.")
    if editor and (editors := [entry for entry in whole if _exported(entry[2])]) and editors[0] is not whole[0]:
        newest, found = whole[0][0], editors[0][0]
        tell_once(
            f"The newest editor of {path} is that of step {step_of(found)} ({found}); name {newest} for step "
            f"{step_of(newest)}, which is not exported and takes longer to load."
        )
        whole = editors
    for folder, files, contents in whole:
        try:
            copy = _copied(folder, files, contents, editor and _exported(contents))
        except DamagedCopy as error:
            problems.append(str(error))
            continue
        if problems:
            tell(f"{problems[0]}; {folder} is taken instead.")
        return copy
    raise ValueError(f"The checkpoints of {path} are damaged: {problems[0]}; start from other weights.")


def _copied(folder: RemotePath, files: Files, contents: Contents, editor: bool) -> Path:
    if editor:
        contents = {name: entry for name, entry in contents.items() if not name.startswith("state/")}
    checksums = {name: crc for name, (_, crc) in contents.items()}
    wanted = {name: files[name] for name in (contents if editor else (*contents, CONTENTS))}
    copy = cached_folder(folder, wanted, checksums)
    if not (copy / CONTENTS).is_file():
        write_contents(copy, contents)
    return copy


def _exported(contents: Iterable[str]) -> bool:
    """As `icve.models.run_folders.exported`, of the names of files."""
    inside = [name for name in contents if name.startswith("transformer/")]
    return not inside or any(name.endswith(".safetensors") for name in inside)


def _json(file: RemotePath) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))
