"""Checkpoints of a run copied to a URL beside training: what is in the run's folder is to be there as well.

`contents.json` of a checkpoint is uploaded last, and goes first where one is removed: what has none is no checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info

from icve.models.remote_runs import checkpoints_behind
from icve.models.run_folders import saved_checkpoints
from icve.models.run_names import BEST, step_of
from icve.runtime.atomic import write_text
from icve.runtime.folder_contents import CONTENTS
from icve.runtime.storage.fetched import listed_states
from icve.runtime.storage.remote_file import RemoteState
from icve.runtime.storage.remote_path import RemotePath
from icve.training.checkpoints.background import announce, hand_over, wait_for_all
from icve.training.checkpoints.run_url import claim

log = logging.getLogger(__name__)

_BEGUN = "uploading.json"  # contents.json of a checkpoint whose upload has not ended: what of it is there can stay
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds between attempts, twice as many each time
_LAST_ATTEMPTS = 3  # at the end of the run
_THREADS, _LARGE = 4, 1 << 24  # files at the same time, but one of more bytes alone
_LOOKED_AT_EVERY = 0.2  # seconds


class Uploads:
    """Keeps the checkpoints behind a URL what they are in the folder of a run, in a thread.

    The newest come first. Where it fails it is tried again, after growing pauses and when the next checkpoint is
    written. The first process says what is uploaded; all of them upload a part of the files, which they agree on
    through files of the run's folder, as they do when they write a checkpoint.

    Args:
        url: of the run.
        run: its folder.
        rank, world: this process's number, and how many there are.
        released: called when a checkpoint, which could not be removed before, has been uploaded.
    """

    def __init__(
        self, url: RemotePath, run: Path, rank: int = 0, world: int = 1, released: Callable[[], object] = lambda: None
    ) -> None:
        self.url, self.run, self.rank, self.world = url, run, rank, world
        self.folder = run / "checkpoints"
        self.guard = threading.Lock()  # held while a checkpoint is chosen for uploading, or removed from the disk
        self.current: str | None = None  # name of the checkpoint that is being uploaded
        self._released = released
        self._requests = self.folder / ".uploads.tmp"
        self._there: dict[str, bytes] | None = None  # contents.json of what is behind the URL, once it is known
        self._sent: dict[Path, tuple[int, int]] = {}  # small files, as they were when they were uploaded
        self._changed = threading.Condition()
        self._asked = self._tried = self._served = self._failures = self._finished = 0
        self._reason = ""
        self._over = False
        self._run_failed = threading.Event()

    # ---- called by the training ----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Make sure that the URL can be written to and is this run's, and upload what is missing there.

        Raises:
            ValueError: it has the checkpoints of another run.
            RemoteError: it cannot be written to.
        """
        if self.rank == 0:
            claim(self.url, self.folder)
            if self.world > 1:
                self._requests.mkdir(parents=True, exist_ok=True)
            self.due()
        self.thread = threading.Thread(target=self._help if self.rank else self._lead, name="upload", daemon=True)
        self.thread.start()

    def due(self) -> None:
        """Something has changed in the run's folder."""
        with self._changed:
            self._asked += 1
            self._changed.notify_all()

    def finish(self) -> bool:
        """Wait until all is uploaded, or cannot be; returns whether it is. To be called by all processes."""
        self._finished += 1
        mark = self._requests / f"finished-{self._finished}"
        if self.rank:
            while self._requests.is_dir() and not mark.exists():
                time.sleep(_LOOKED_AT_EVERY)
            return True  # the first process says what is not
        self.due()
        with self._changed:
            self._failures, asked = 0, self._asked
            self._changed.notify_all()
            if self.current is not None or self._tried < self._asked - 1:
                rank_zero_info(f"The run ends when its checkpoints are uploaded to {self.url}.")
            # In short waits, so that a second signal is heard.
            while self._served < asked and self._failures < _LAST_ATTEMPTS:
                self._changed.wait(_LOOKED_AT_EVERY)
            done = self._served >= asked
        if not done:
            log.error(
                "The checkpoints in %s are not all uploaded to %s (%s); they stay on this disk: with --ckpt_path %s, "
                "the same command uploads them.",
                *(self.folder, self.url, self._reason, self.run),
            )
        elif self._finished == 1:
            rank_zero_info(f"All checkpoints are uploaded to {self.url}.")
        if self.world > 1:
            mark.touch()
        return done

    def run_failed(self) -> None:
        """Other processes may be gone, and are not waited for an hour."""
        self._run_failed.set()

    def end(self) -> None:
        """Let the thread end."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        if self.rank == 0:
            shutil.rmtree(self._requests, ignore_errors=True)

    # ---- in the threads ------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        while True:
            with self._changed:
                pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 1)) if self._failures else None
                self._changed.wait_for(lambda: self._asked > self._tried or self._over, pause)
                if self._over:
                    return
                self._tried = asked = self._asked
            reason = ""
            try:
                self._upload_all()
            except Exception as error:  # whatever it is, training goes on
                reason = " ".join(str(error.__cause__ or error).split()).rstrip(".") or type(error).__name__
            finally:
                self.current = None
            with self._changed:
                self._tell(reason)
                self._reason, self._failures = reason, self._failures + 1 if reason else 0
                self._served = self._served if reason else asked
                self._changed.notify_all()

    def _tell(self, reason: str) -> None:
        """Once for many attempts that fail."""
        if reason and not self._reason:
            log.warning(
                "Checkpoints are not uploaded to %s (%s): they stay in %s, training goes on, and it is tried again.",
                *(self.url, reason, self.folder),
            )
        elif self._reason and not reason:
            log.warning("The checkpoints that were not uploaded to %s are there now.", self.url)

    def _help(self) -> None:
        """Upload this process's part of what the first process asks for."""
        while not self._over:
            for mark in list(self._requests.glob(f"*/.writing-{self.rank}")):
                request = mark.parent
                try:
                    names = json.loads((request / "names").read_text(encoding="utf-8"))[self.rank :: self.world]
                    hand_over(request, self.rank, partial(self._put, self.folder / request.name, names))
                except Exception as error:  # the first process uploads what is missing, or says why it cannot
                    log.info("A part of %s was not uploaded: %s", request.name, error)
            time.sleep(_LOOKED_AT_EVERY)

    # ---- what is uploaded ----------------------------------------------------------------------------------------

    def _upload_all(self) -> None:
        if self._there is None:
            behind = checkpoints_behind(self.url)
            self._there = {folder.name: (folder / CONTENTS).read_bytes() for folder, _ in behind}
        self._upload_small_files()
        while (chosen := self._choose(self._there)) is not None:
            folder, contents = chosen
            self._upload(folder, contents)
            self._there[folder.name] = contents
            self.current = None
            self._released()
        best, link = self.url / "checkpoints" / BEST, self.folder / BEST
        if link.is_symlink():
            _write(best, link.readlink().name.encode())
        else:
            best.unlink(missing_ok=True)
        self._remove_old()
        self._upload_small_files()

    def _choose(self, there: dict[str, bytes]) -> tuple[Path, bytes] | None:
        """The newest checkpoint that is not uploaded; it is not removed meanwhile."""
        with self.guard:
            for folder in reversed(saved_checkpoints(self.folder)):
                contents = (folder / CONTENTS).read_bytes() if (folder / CONTENTS).is_file() else None
                if contents is not None and there.get(folder.name) != contents:
                    self.current = folder.name
                    return folder, contents
        return None

    def _upload(self, folder: Path, contents: bytes) -> None:
        remote = self.url / "checkpoints" / folder.name
        sizes = {name: size for name, (size, _) in json.loads(contents).items()}
        there = _listed(remote)
        if _BEGUN not in there or (remote / _BEGUN).read_bytes() != contents:
            # Whatever is there is another checkpoint of this step.
            (remote / CONTENTS).unlink(missing_ok=True)
            _write(remote / _BEGUN, contents)
            there = {}
        missing = [name for name, size in sizes.items() if name not in there or there[name].size != size]
        self._share(folder, sorted(missing, key=lambda name: -sizes[name]))
        there = _listed(remote)
        self._put(folder, [name for name, size in sizes.items() if name not in there or there[name].size != size])
        if (folder / CONTENTS).read_bytes() != contents:
            return  # written again meanwhile
        (remote / CONTENTS).upload(folder / CONTENTS)
        _remove([remote / name for name in there if name not in sizes and name != CONTENTS])

    def _share(self, folder: Path, names: Sequence[str]) -> None:
        """Upload files, each process its part of them."""
        if self.world == 1:
            self._put(folder, names)
            return
        request = self._requests / folder.name
        shutil.rmtree(request, ignore_errors=True)
        request.mkdir(parents=True)
        write_text(request / "names", json.dumps(list(names)))
        announce(request, self.world)
        try:
            hand_over(request, 0, lambda: self._put(folder, names[:: self.world]))
        finally:
            wait_for_all(request, self.world, self._run_failed)
            shutil.rmtree(request, ignore_errors=True)

    def _put(self, folder: Path, names: Sequence[str]) -> None:
        remote = self.url / "checkpoints" / folder.name
        large = [name for name in names if (folder / name).stat().st_size > _LARGE]
        with ThreadPoolExecutor(_THREADS, "upload") as pool:
            list(pool.map(lambda name: (remote / name).upload(folder / name), [n for n in names if n not in large]))
        for name in large:  # of one many parts are in memory
            (remote / name).upload(folder / name)

    def _upload_small_files(self) -> None:
        """The configuration, and what it ran with; of a stage, the record of its curriculum too."""
        files = [*self.run.glob("*.yaml"), *self.run.glob("*.json"), self.run.parent / "curriculum.jsonl"]
        for file in filter(Path.is_file, files):
            url = self.url if file.parent == self.run else self.url.parent
            stamp = (file.stat().st_size, file.stat().st_mtime_ns)
            if self._sent.get(file) != stamp:
                (url / file.name).upload(file)
                self._sent[file] = stamp

    def _remove_old(self) -> None:
        """Remove checkpoints behind the URL that are older than the newest here, and not here any longer."""
        saved = saved_checkpoints(self.folder)
        here, newest = {folder.name for folder in saved}, max(map(step_of, saved), default=0)
        of_step: dict[Path, list[RemotePath]] = {}
        for name in _listed(self.url / "checkpoints"):
            folder = Path(Path(name).parts[0])
            if folder.name not in here and 0 < step_of(folder) < newest:
                of_step.setdefault(folder, []).append(self.url / "checkpoints" / name)
        for files in of_step.values():
            _remove([file for file in files if file.name == CONTENTS])
            _remove([file for file in files if file.name != CONTENTS])


def _listed(folder: RemotePath) -> dict[str, RemoteState]:
    try:
        return listed_states(folder)
    except FileNotFoundError:
        return {}


def _write(file: RemotePath, content: bytes) -> None:
    with file.written_whole() as local:
        local.write_bytes(content)


def _remove(files: Sequence[RemotePath]) -> None:
    with ThreadPoolExecutor(_THREADS, "upload") as pool:
        list(pool.map(lambda file: file.unlink(missing_ok=True), files))
