"""The URL that a run uploads its checkpoints to: whose it is, and the run brought back from it to an empty disk."""

from __future__ import annotations

import uuid
from pathlib import Path

from icve.models.remote_runs import best_behind, checkpoints_behind, fetch_checkpoint
from icve.models.run_folders import saved_checkpoints
from icve.models.run_names import BEST, LAST, step_of, tell
from icve.runtime.atomic import replace_link, write_text
from icve.runtime.folder_contents import find_damage
from icve.runtime.locks import locked
from icve.runtime.storage.fetched import DamagedCopy
from icve.runtime.storage.remote_path import RemotePath

_ID = "run-id"  # in `checkpoints/` here and behind the URL


def claim(url: RemotePath, folder: Path, resumed: bool = False) -> None:
    """Make sure that a URL is of the run with this folder of checkpoints and can be written to.

    Args:
        url: of a run.
        folder: RUN/checkpoints.
        resumed: the run is known to be that of the URL; its folder may be empty.

    Raises:
        ValueError: the URL, or the folder, has checkpoints of another run; or there is no such bucket.
        RemoteError: the server refuses, or does not answer.
    """
    file, remote = folder / _ID, url / "checkpoints" / _ID
    own = file.read_text(encoding="utf-8").strip() if file.is_file() else None
    try:
        theirs = remote.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        theirs = None
    known = resumed and not (theirs and own and saved_checkpoints(folder))
    if theirs != own and not known and checkpoints_behind(url):
        raise ValueError(
            f"{url} holds checkpoints of another run than {folder.parent}: to go on with that run, give --ckpt_path "
            f"{url} and a new trainer.default_root_dir; else choose another upload, or remove what is there."
        )
    name = theirs or own or uuid.uuid4().hex
    write_text(file, name)
    try:
        remote.upload(file)
    except FileNotFoundError as error:
        raise ValueError(f"Nothing can be uploaded to {url}: there is no such bucket; make it first.") from error


def restore(url: RemotePath, run: Path, named: str | None = None) -> Path:
    """Bring what a run goes on from to its folder: its newest whole checkpoint, unless that is there, and its best one.

    Args:
        url: of the run.
        run: its folder.
        named: a certain checkpoint instead, `best` or as step-000100.

    Returns:
        the folder of the run, or of the checkpoint that was named.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: it is damaged, there is no room for it, or the folder is another run's.
        RemoteError: the server does not give it.
    """
    folder = run / "checkpoints"
    with locked(folder / ".restore.lock"):
        behind = checkpoints_behind(url)
        if behind:
            claim(url, folder, resumed=True)
        whole = [saved for saved in saved_checkpoints(folder) if find_damage(saved, of=0) is None]
        best = best_behind(url)
        if named is not None:
            name = best if named == BEST else named
            if name is None or name not in [found.name for found, _ in behind]:
                raise FileNotFoundError(f"There is no checkpoint {named} at {url}: name another one, or the run's URL.")
        for found, files in behind:
            if named is None and step_of(found) <= max(map(step_of, whole), default=-1):
                break
            if named is not None and found.name != name:
                continue
            try:
                fetch_checkpoint(found, files, folder)
            except DamagedCopy as error:
                if named is not None:
                    raise ValueError(f"The checkpoint {found} is damaged: {error}; name an earlier one.") from error
                tell(f"{error}; the run goes on from an earlier checkpoint.")
                continue
            if named is None:
                replace_link(folder / LAST, found.name)
            break
        for found, files in behind:
            if found.name == best and named is None:
                try:
                    fetch_checkpoint(found, files, folder)
                    replace_link(folder / BEST, found.name)
                except DamagedCopy as error:
                    tell(f"{error}; the best checkpoint is looked for anew.")
    return run if named is None else folder / str(name)
