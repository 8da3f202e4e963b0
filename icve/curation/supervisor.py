"""A process that runs stages, watched: what hangs is killed, what dies starts anew, the row to blame is named."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Literal

from icve.curation.run_folder import Run
from icve.curation.stage import Rejected
from icve.curation.work import Casualties, ShardWorker, StageBroken, describe

GRACE = 5.0  # seconds beyond a batch's limit, for starting threads, swapping and slow disks


class Stopped(RuntimeError):
    """The supervisor was told to stop while its process was at work."""


class Supervisor:
    """One worker process for stages `numbers` of a run.

    A batch that takes longer than its rows may, or during which the process dies, is tried again row by row in a fresh
    process; a row that does it alone is rejected ("timed out", "process died"), and the shard goes on without it.

    Args:
        run: the run.
        numbers: stages to run, consecutive.
        environment: variables of the process (its device, its number of threads).
    """

    def __init__(self, run: Run, numbers: Sequence[int], environment: Mapping[str, str] | None = None) -> None:
        self._run, self._numbers, self._environment = run, list(numbers), dict(environment or {})
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._stopped = False

    def stop(self) -> None:
        """Kill the process, from any thread."""
        self._stopped = True
        self._kill()

    def work(self, method: Literal["work", "work_all"], argument: str) -> int:
        """Call a method of the process's `ShardWorker` until it is done; returns the number of rows worked on.

        Args:
            method: "work" brings the shard `argument` through the stages; "work_all" runs the one stage, which sees
                all rows, on what its parts are made from.
            argument: the method's first.

        Raises:
            StageBroken: a stage cannot run.
            Stopped: `stop` was called.
        """
        casualties, deaths = Casualties(), 0
        while True:
            number, keys, ending = self._attempt(method, argument, casualties)
            if ending is None:
                return number
            if self._stopped:
                raise Stopped
            if not keys:
                deaths += 1
                if deaths > 1:
                    stages = ", ".join(self._run.pipeline.stages[n - 1].name for n in self._numbers)
                    raise StageBroken(f"The process that starts {stages} {ending.detail}, twice: is memory short?")
            elif len(keys) > 1 and casualties.suspects.get(number, set()).issuperset(keys):
                # Only a stage that sees all rows gets several again.
                name = self._run.pipeline.stages[number - 1].name
                raise StageBroken(f"Stage {number} ({name}), which sees all rows, {_twice(ending)}.")
            elif len(keys) == 1 and keys[0] in casualties.suspects.get(number, ()):
                casualties.rejected.setdefault(number, {})[keys[0]] = ending
            else:
                casualties.suspects.setdefault(number, set()).update(keys)
                if len(keys) == 1 and ending.reason == "timed out":  # a hang is no accident: once is enough
                    casualties.rejected.setdefault(number, {})[keys[0]] = ending

    def _attempt(self, method: str, argument: str, casualties: Casualties) -> tuple[int, list[str], Rejected | None]:
        """Either (rows worked on, [], None), or the stage and rows at work and how it ended."""
        connection = self._start()
        number, allowed = 0, 0.0
        keys: list[str] = []
        deadline: float | None = None
        try:
            connection.send((method, argument, casualties))
            while True:
                if not connection.poll(None if deadline is None else max(0.0, deadline - time.monotonic())):
                    self._kill()
                    return number, keys, Rejected("timed out", f"it took longer than {allowed:.0f} seconds")
                kind, *values = connection.recv()
                if kind == "watch":
                    number, keys, allowed = values
                    deadline = time.monotonic() + allowed + GRACE if keys else None
                elif kind == "done":
                    return values[0], [], None
                else:
                    raise StageBroken(values[0])
        except (EOFError, OSError):  # the process is gone
            return number, keys, Rejected("process died", self._last_words())

    def _start(self) -> Connection:
        if self._process is None or not self._process.is_alive():
            # Spawned, because forking a process that has running threads (torch's, for one) can hang.
            context = multiprocessing.get_context("spawn")
            ours, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._run, self._numbers, self._environment, os.getpid()), daemon=False
            )
            self._process.start()
            theirs.close()
            self._connection = ours
        assert self._connection is not None
        return self._connection

    def _kill(self) -> None:
        if (process := self._process) is not None:
            with contextlib.suppress(ValueError, AttributeError):
                process.kill()
                process.join()

    def _last_words(self) -> str:
        if self._process is None:
            return "ended"
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with status {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"


def _twice(ending: Rejected) -> str:
    return f"took too long twice: {ending.detail}" if ending.reason == "timed out" else f"twice {ending.detail}"


def _serve(
    connection: Connection, run: Run, numbers: Sequence[int], environment: Mapping[str, str], parent: int
) -> None:
    """The worker process: takes (method, argument, casualties), tells what it is doing, and answers."""
    os.environ.update(environment)
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if (threads := environment.get("OMP_NUM_THREADS")) and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(threads))
    worker = ShardWorker(run, numbers)
    lock = threading.Lock()

    def send(*message: Any) -> None:
        with lock:
            connection.send(message)

    watch: Callable[[int, list[str], float], None] = lambda *values: send("watch", *values)  # noqa: E731
    while True:
        try:
            method, argument, casualties = connection.recv()
        except EOFError:
            return
        try:
            send("done", getattr(worker, method)(argument, casualties, watch))
        except MemoryError:
            os._exit(1)
        except StageBroken as error:
            send("broken", str(error))
        except OSError as error:  # a full disk, most likely
            send("broken", f"{run.output} cannot be written: {error.strerror or error}.")
        except Exception as error:  # a part that cannot be read: nothing more can be done here
            send("broken", f"{describe(error)}.")


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
