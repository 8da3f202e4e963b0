"""The Slurm job resumes its run, stops in time and is queued again when that helps; Slurm's commands are stand-ins."""

import os
import shutil
import signal
import subprocess
import time

import pytest

SRUN = """#!/bin/bash
echo "srun $*" >> calls
trap 'echo saved >> calls; exit 0' USR1
echo $$ > srun.pid
for _ in $(seq "$TENTHS"); do sleep 0.1; done
exit "$STATUS"
"""
SCANCEL = '#!/bin/bash\necho "scancel $*" >> calls; kill -USR1 "$(cat srun.pid)"\n'
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> calls\n'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a bash script")


@pytest.fixture
def start(tmp_path, repository):
    """Start the job: start(exit status of the training, tenths of a second it takes)."""
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    started = []

    def start(status=0, tenths=0, restarts=0):
        (tmp_path / "calls").write_text("")
        variables = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "8", "SLURM_CPUS_PER_TASK": "4"}
        variables |= {"SLURM_RESTART_COUNT": str(restarts), "STATUS": str(status), "TENTHS": str(tenths)}
        variables["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        command = ["bash", repository / "tools/train.sbatch", "a run", "-c", "c.yaml", "--ckpt_path", "before"]
        started.append(subprocess.Popen(command, cwd=tmp_path, env=os.environ | variables))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def calls(process, folder):
    process.wait(timeout=30)
    return (folder / "calls").read_text().splitlines()


def test_a_run_is_begun_and_then_resumed(start, tmp_path):
    begun = "srun --kill-on-bad-exit=1 icve fit -c c.yaml --ckpt_path before{} --trainer.default_root_dir a run"
    begun += " --trainer.num_nodes 8"
    assert calls(start(), tmp_path) == [begun.format("")]
    for checkpoint in ("a run/sft/checkpoints/step-000500", "a run/checkpoints/step-000500"):  # of a curriculum, or not
        (tmp_path / checkpoint).mkdir(parents=True)
        assert calls(start(), tmp_path) == [begun.format(" --ckpt_path a run")]
        shutil.rmtree(tmp_path / "a run")


def test_it_is_queued_again_when_it_failed_but_not_for_ever_nor_when_it_was_used_wrongly(start, tmp_path):
    for status, restarts, queued in ((1, 0, True), (137, 3, True), (1, 10, False), (2, 0, False), (0, 0, False)):
        process = start(status, restarts=restarts)
        assert (calls(process, tmp_path)[1:] == ["scontrol requeue 7"]) == queued
        assert process.returncode == status


def test_told_that_time_is_up_it_lets_the_training_save_first(start, tmp_path):
    process = start(tenths=200)
    while not (tmp_path / "srun.pid").exists():
        time.sleep(0.02)
    time.sleep(0.2)  # the job is in its wait
    process.send_signal(signal.SIGUSR1)
    assert calls(process, tmp_path)[1:] == ["scancel --signal=USR1 7", "saved", "scontrol requeue 7"]
    assert process.returncode == 0
