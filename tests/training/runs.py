"""Runs of `icve fit` in processes of their own, as a user starts them, and what they leave."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tools.faults.runs import steps, strategy  # noqa: F401 (strategy is for tests)

REPOSITORY = Path(__file__).resolve().parents[2]


def start(config, *arguments, before=(), variables=None, **options):
    """Start `icve fit`, on one thread: the order of sums must not depend on the machine.

    Words before `-m icve fit` make it a launcher's; options are of Popen.
    """
    command = [sys.executable, *before, "-m", "icve", "fit", "-c", config, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (variables or {})
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.Popen(list(map(str, command)), env=environment, **options)


def finish(process, seconds, status=0):
    """Wait for a run that ends within its time and with that status; returns what it said."""
    _, errors = process.communicate(timeout=seconds)
    assert process.returncode == status, errors[-3000:]
    return errors


def fit(config, run, *arguments, status=0, seconds=200):
    """Run `icve fit`, which ends with that status; returns what it said."""
    process = start(config, "--trainer.default_root_dir", run, *arguments)
    try:
        return finish(process, seconds, status)
    finally:
        process.kill()


def until_steps(process, run, count, seconds):
    """Wait until a run has so many micro-batches on record."""
    deadline = time.monotonic() + seconds
    while len(steps(run)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def torchrun(module, processes, *arguments, seconds):
    """Run a module of the tests in so many processes; returns what it printed and said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", module, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "timeout": seconds, "env": environment, "cwd": REPOSITORY}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout, done.stderr


def run_in_turn(commands, processes, folder, seconds):
    """Run `icve` command lines one after the other in the same processes: these start in seconds, most runs in less.

    Returns what they printed.
    """
    file = folder / "commands.json"
    file.write_text(json.dumps([list(map(str, command)) for command in commands]))
    return torchrun("tests.training.commands", processes, file, seconds=seconds)[0]
