"""A run killed while a file of a checkpoint is being written in the background goes on from the one before."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icve.editing.editors import load_editor
from icve.models.run_folders import resolve_checkpoint, saved_checkpoints
from icve.runtime.folder_contents import find_damage
from tests.training.runs import finish, start, steps

TIME_LIMIT = 100
# Of a file in the place that is named first half is on disk, and there the process stops. Then it says so.
STALLED = """
import os, sys, time
from pathlib import Path
from icve.cli.main import main
from icve.runtime import atomic

place, reached = sys.argv[1], Path(sys.argv[2])
fsync = atomic.fsync

def stall(descriptor):
    if place in os.readlink(f"/proc/self/fd/{descriptor}"):
        os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        reached.touch()
        time.sleep(600)
    fsync(descriptor)

atomic.fsync = stall
sys.exit(main(sys.argv[3:]))
"""


@pytest.fixture
def config(tiny_yaml):
    """Checkpoints in the background after steps 2, 4 and 6, of which 4 and 6 are exported, in bfloat16."""
    options = "keep_last: 0, asynchronous: true, export_every: 2, export_dtype: bfloat16"
    tiny_yaml.write_text(tiny_yaml.read_text().replace("keep_last: 0", options).replace("max_steps: 4", "max_steps: 6"))
    return tiny_yaml


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(6 * TIME_LIMIT)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_in_the_middle_of_a_file_and_resumed_equals_uninterrupted(config, watched, tmp_path):
    truth = tmp_path / "whole"
    finish(watched(start(config, "--trainer.default_root_dir", truth)), TIME_LIMIT)
    for name, place in {"state": ".step-000004.tmp/state/", "editor": ".step-000004.tmp/transformer/"}.items():
        run, reached = tmp_path / name, tmp_path / f"{name}-reached"
        fit = ["fit", "-c", config, "--trainer.default_root_dir", run]
        command = list(map(str, [sys.executable, "-c", STALLED, place, reached, *fit]))
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
        process = watched(subprocess.Popen(command, env=one_thread, stderr=subprocess.PIPE, text=True))
        deadline = time.monotonic() + TIME_LIMIT
        while not reached.exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=TIME_LIMIT)

        checkpoints = run / "checkpoints"
        half = list((checkpoints / ".step-000004.tmp").rglob("*.safetensors"))
        assert any(place in str(file) for file in half)
        assert saved_checkpoints(checkpoints) == [checkpoints / "step-000002"]
        assert resolve_checkpoint(run) == (checkpoints / "last").resolve() == checkpoints / "step-000002"
        load_editor(run)

        said = finish(watched(start(config, "--trainer.default_root_dir", run, "--ckpt_path", run)), TIME_LIMIT)
        assert "resumes at step 2" in said
        assert steps(run) == steps(truth)
        assert sorted(os.listdir(checkpoints)) == ["last", "step-000002", "step-000004", "step-000006"]
        for folder in saved_checkpoints(checkpoints):
            assert find_damage(folder) is None
            assert weights(folder) == weights(truth / "checkpoints" / folder.name)


def weights(folder: Path) -> dict[str, bytes]:
    files = [file for place in ("state", "transformer") for file in (folder / place).glob("*.safetensors")]
    return {file.name: file.read_bytes() for file in files}
