"""Locks between processes, on every file system.

Where the file system has flock, that is the lock: the kernel frees it when its holder dies. Elsewhere (some network and
FUSE file systems, Windows) a file made with O_EXCL is: it says who holds it, and its holder touches it every few
seconds. A dead holder's file is removed: at once where its process id can be looked up, else when nobody has touched
the file for a minute.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # mypy has no word for a module that may be missing

TOUCHED_EVERY, ABANDONED_AFTER = 10.0, 60.0  # seconds
_LOOKED_AT_EVERY = 0.05
# Each file system without flock has its own way of saying so.
_WITHOUT_FLOCK = frozenset({errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.ENOLCK})


class AlreadyLocked(Exception):
    """Another process holds the lock. ``holder`` says which, "" where that is not known."""

    def __init__(self, holder: str = "") -> None:
        super().__init__(holder)
        self.holder = holder


@contextlib.contextmanager
def locked(file: str | os.PathLike, wait: bool = True) -> Iterator[None]:
    """Keep other processes, and other threads of this one, out of blocks with the same lock file.

    Args:
        file: of the lock; made, with its folder, where it is missing, and left there. Without flock, the lock is
            ``<file>.held`` beside it, which is removed.
        wait: for the lock, for as long as a living process holds it.

    Raises:
        AlreadyLocked: another process holds it, and ``wait`` is false.
        OSError: the file cannot be made, or flock fails where it exists.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    # A file description of its own for every use: the lock then also keeps this process's threads apart.
    with file.open("a") as stream:
        if _flock(stream.fileno(), wait):
            yield
        else:
            with _held(file.with_name(file.name + ".held"), wait):
                yield


def _flock(descriptor: int, wait: bool, again: bool = False) -> bool:
    """Lock an open file; False where its file system has no such locks. Raises AlreadyLocked, and OSError otherwise."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise AlreadyLocked from None
    except OSError as error:
        if error.errno == errno.ENOLCK and not again:  # also where there are too many locks at this moment
            time.sleep(_LOOKED_AT_EVERY)
            return _flock(descriptor, wait, again=True)
        # Not after any error: this process would hold the one lock while another holds the other.
        if error.errno not in _WITHOUT_FLOCK:
            raise
        return False
    return True


@contextlib.contextmanager
def _held(lock: Path, wait: bool) -> Iterator[None]:
    owner = json.dumps(
        {"place": _place(), "pid": os.getpid(), "began": _start_time(os.getpid()), "id": uuid.uuid4().hex}
    )
    seen: tuple[str, int] | None = None
    since = time.monotonic()
    while not _create(lock, owner):
        state = _state(lock)
        if state is None:
            continue  # freed in the meantime
        # Only this process's clock is asked, and only for how long nothing changed: clocks of machines differ.
        if state != seen:
            touched = seen is not None and seen[0] == state[0]
            seen, since = state, time.monotonic()
            if touched and not wait:
                raise AlreadyLocked(_holder_name(state[0]))
        alive = _alive(state[0])
        if alive and not wait:
            raise AlreadyLocked(_holder_name(state[0]))
        if alive is False or (alive is None and time.monotonic() - since > ABANDONED_AFTER):
            _remove_abandoned(lock, state[0])
        else:
            time.sleep(_LOOKED_AT_EVERY)
    ended = threading.Event()
    toucher = threading.Thread(target=_touch, args=(lock, ended), daemon=True)
    toucher.start()
    try:
        yield
    finally:
        ended.set()
        toucher.join()
        if (state := _state(lock)) is not None and state[0] == owner:
            lock.unlink(missing_ok=True)


def _create(lock: Path, owner: str) -> bool:
    try:
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(owner)
    return True


def _state(lock: Path) -> tuple[str, int] | None:
    """Who holds the lock and when he touched it last (ns of the file system's clock); None where nobody does."""
    try:
        return lock.read_text(encoding="utf-8", errors="replace"), lock.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _touch(lock: Path, ended: threading.Event) -> None:
    while not ended.wait(TOUCHED_EVERY):
        with contextlib.suppress(OSError):
            os.utime(lock)


def _remove_abandoned(lock: Path, owner: str) -> None:
    """Remove a dead holder's file, unless another process has done so and someone else holds the lock by now."""
    breaking = lock.with_name(lock.name + ".breaking")  # one process at a time looks and removes
    if not _create(breaking, owner):
        with contextlib.suppress(OSError):
            # Held for a moment only, so a file that stays is a dead process's. The time is the file system's, from a
            # file that is touched now: a file server's clock may differ from this machine's.
            clock = lock.with_suffix("")
            os.utime(clock)
            if clock.stat().st_mtime - breaking.stat().st_mtime > ABANDONED_AFTER:
                breaking.unlink()
        time.sleep(_LOOKED_AT_EVERY)
        return
    try:
        if (state := _state(lock)) is not None and state[0] == owner:
            lock.unlink(missing_ok=True)
    finally:
        breaking.unlink(missing_ok=True)


def _alive(owner: str) -> bool | None:
    """Whether a holder's process still runs; None where it cannot be looked up from here."""
    try:
        record = json.loads(owner)
        place, pid, began = record["place"], int(record["pid"]), record["began"]
    except (ValueError, TypeError, KeyError):
        return None  # about to be written
    if os.name == "nt" or place != _place():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return began is None or began == _start_time(pid)


def _holder_name(owner: str) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        record = json.loads(owner)
        return f"process {record['pid']} on {record['place'][0]}"
    return ""


def _place() -> list[str]:
    """Where process ids mean the same: a machine since it was started, and a container on it."""
    place = [socket.gethostname()]
    with contextlib.suppress(OSError):
        place.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        place.append(os.readlink("/proc/self/ns/pid"))
    return place


def _start_time(pid: int) -> str | None:
    """When a process was started, in ticks of its machine: a new process may get a dead one's id."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
