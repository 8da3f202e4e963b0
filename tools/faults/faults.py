"""What can happen to a training run."""

import resource
import signal
import time
from contextlib import suppress

from tools.faults.job import Job, send
from tools.faults.run import Fault, Run

FILE_LIMIT = 20_000  # bytes: the record of steps is smaller, a rank's part of a checkpoint larger


def start(run: Run, job: Job) -> None:
    """Kill a rank while everything is being set up."""
    moment = job.started + run.random.uniform(0.5, 12)
    run.until(job, lambda: time.monotonic() > moment)
    send(run.random.choice(job.ranks() or [job.main.pid]), signal.SIGKILL)


def step(run: Run, job: Job) -> None:
    """Kill a rank some steps further on."""
    run.until_some_steps(job)
    send(run.random.choice(job.ranks() or [job.main.pid]), signal.SIGKILL)


def loader(run: Run, job: Job) -> None:
    """Kill a worker of a data loader, or a rank where there is none."""
    run.until_some_steps(job)
    send(run.random.choice(job.workers() or job.ranks() or [job.main.pid]), signal.SIGKILL)


def save(run: Run, job: Job) -> None:
    """Kill a rank while a checkpoint is written."""
    ranks = run.until_saving(job)
    time.sleep(run.random.uniform(0, 0.03))
    send(run.random.choice(ranks), signal.SIGKILL)


def node(run: Run, job: Job) -> None:
    """Kill all processes at once."""
    run.until_some_steps(job)
    for process in job.processes():
        send(process, signal.SIGKILL)


def disk(run: Run, job: Job) -> None:
    """While a checkpoint is written files stop to grow, which stands for a full disk."""
    for rank in run.until_saving(job):
        with suppress(ProcessLookupError):
            resource.prlimit(rank, resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))


def stop(run: Run, job: Job) -> None:
    """Stop a rank for ever."""
    run.until_some_steps(job)
    send(run.random.choice(job.ranks() or [job.main.pid]), signal.SIGSTOP)


def damage_newest(run: Run) -> bool:
    """Change, cut or remove a file of the newest checkpoint, if there is one before it."""
    if len(run.checkpoints()) < 2:
        return False
    files = [file for file in run.checkpoints()[-1].rglob("*") if file.is_file()]
    file = run.random.choice(sorted(files))
    content = bytearray(file.read_bytes())
    how = run.random.choice(["change", "cut", "remove"])
    if how == "change":
        content[run.random.randrange(len(content))] ^= 0xFF
        file.write_bytes(content)
    elif how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    return True


_DETECTOR = (
    "--trainer.callbacks+=icve.training.callbacks.stalls.StallDetector",
    "--trainer.callbacks.warn_after=20",
    "--trainer.callbacks.abort_after=25",
)
KILLS = [
    Fault("killed at the start", start),
    Fault("killed in a step", step),
    Fault("killed in a save", save),
    Fault("loader's worker killed", loader),
    Fault("all killed", node),
    Fault("newest checkpoint damaged, then killed", step, before=damage_newest),
]
DISK = Fault("disk full in a save", disk)
STOP = Fault("stopped for ever", stop, _DETECTOR)
KILLED_AT_START, KILLED_IN_STEP, KILLED_IN_SAVE, LOADER_KILLED, ALL_KILLED, DAMAGED = KILLS
