"""One start of a training job, and its processes (Linux: /proc)."""

import os
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path


class Job:
    """One start of a run: its processes, known by a mark in their environment.

    Args:
        command: what is started.
        log: file that gets what it prints.
    """

    def __init__(self, command: list[str], log: Path) -> None:
        self.log, self._mark = log, f"ICVE_TEST_JOB={uuid.uuid4().hex}"
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict([self._mark.split("=")])
        self.started = time.monotonic()
        with log.open("w") as output:
            self.main = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)

    def processes(self) -> dict[int, "Process"]:
        """All that live, by id."""
        living = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (process := Process.read(entry)) and self._mark in process.environment:
                living[process.id] = process
        return living

    def ranks(self) -> list[int]:
        """Process ids by rank."""
        living = self.processes()
        mine = [process for process in living.values() if process.is_rank and not process.is_fork_in(living)]
        return [process.id for process in sorted(mine, key=lambda process: process.rank)]

    def workers(self) -> list[int]:
        """Of the data loaders."""
        living = self.processes()
        return [process.id for process in living.values() if process.is_rank and process.is_fork_in(living)]

    def wait(self, seconds: float) -> float | None:
        """Seconds until no process was left, None if some still lives; these are killed."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.main.poll() is not None and not self.processes():
                return time.monotonic() - start
            time.sleep(0.05)
        self.kill()
        return None

    def kill(self) -> None:
        """Leave nothing running."""
        while living := self.processes():
            for process in living:
                send(process, signal.SIGKILL)
            self.main.poll()
            time.sleep(0.02)
        self.main.wait()


@dataclass(frozen=True)
class Process:
    """What /proc says of a process that trains."""

    id: int
    parent: int
    command: bytes
    environment: frozenset[str]

    @classmethod
    def read(cls, entry: Path) -> "Process | None":
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            variables = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            if state == "Z" or not variables:
                return None
            return cls(int(entry.name), int(parent), (entry / "cmdline").read_bytes(), frozenset(variables))
        except OSError:  # it has just ended, or is another user's
            return None

    @property
    def is_rank(self) -> bool:
        words = self.command.split(b"\0")  # Lightning's launcher says icve.__main__
        return b"torch.distributed.run" not in words and any(
            module in (b"icve", b"icve.__main__") and command == b"fit" for module, command in pairwise(words)
        )

    @property
    def rank(self) -> int:
        return next((int(text[11:]) for text in self.environment if text.startswith("LOCAL_RANK=")), 0)

    def is_fork_in(self, living: dict[int, "Process"]) -> bool:
        """Whether it shares command and rank with its parent: launchers start processes, loaders fork them."""
        parent = living.get(self.parent)
        return parent is not None and parent.is_rank and parent.rank == self.rank


def send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)
