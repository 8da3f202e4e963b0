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
if [ -n "$WRITES" ]; then mkdir -p "$WRITES"; fi
exit "$STATUS"
"""
SCANCEL = '#!/bin/bash\necho "scancel $*" >> calls; kill -USR1 "$(cat srun.pid)"\n'
SCONTROL = '#!/bin/bash\necho "scontrol $*" >> calls\n'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="a bash script")


@pytest.fixture
def start(tmp_path, repository):
    """Start the job: start(exit status of the training, tenths of a second it takes, starts before, checkpoint)."""
    for name, text in {"srun": SRUN, "scancel": SCANCEL, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    started = []

    def start(status=0, tenths=0, restarts=0, writes=""):
        (tmp_path / "calls").write_text("")
        variables = {"SLURM_JOB_ID": "7", "SLURM_NNODES": "8", "SLURM_CPUS_PER_TASK": "4"}
        variables |= {"SLURM_RESTART_COUNT": str(restarts), "STATUS": str(status), "TENTHS": str(tenths)}
        variables["WRITES"] = writes and f"a run/{writes}"
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


def queued_again(process, folder):
    return calls(process, folder)[1:] == ["scontrol requeue 7"]


def test_it_is_queued_again_when_it_failed_but_not_when_it_has_ended_or_was_used_wrongly(start, tmp_path):
    for status, queued in ((1, True), (137, True), (2, False), (0, False)):
        process = start(status)
        assert queued_again(process, tmp_path) == queued
        assert process.returncode == status
        shutil.rmtree(tmp_path / "a run", ignore_errors=True)


def test_three_failures_in_a_row_are_borne_and_any_number_between_which_there_are_checkpoints(start, tmp_path):
    # A month of time limits has made many starts of it.
    assert [queued_again(start(137, restarts=30), tmp_path) for _ in range(2)] == [True, True]
    for step in ("checkpoints/step-000500", "checkpoints/step-001000", "sft/checkpoints/step-000500"):
        assert queued_again(start(1, restarts=30, writes=step), tmp_path)
        assert not (tmp_path / "a run" / "failures").exists()
        assert [queued_again(start(137, restarts=30), tmp_path) for _ in range(3)] == [True, True, True]
    # The same checkpoint again is no progress.
    assert not queued_again(start(1, restarts=30, writes="checkpoints/step-000500"), tmp_path)
    # A person who submits it anew has reason to.
    assert [queued_again(start(1, restarts=n), tmp_path) for n in range(4)] == [True, True, True, False]
    assert queued_again(start(0, restarts=5), tmp_path) is False
    assert not (tmp_path / "a run" / "failures").exists()


def test_told_that_time_is_up_it_lets_the_training_save_first(start, tmp_path):
    process = start(tenths=200)
    while not (tmp_path / "srun.pid").exists():
        time.sleep(0.02)
    time.sleep(0.2)  # the job is in its wait
    process.send_signal(signal.SIGUSR1)
    assert calls(process, tmp_path)[1:] == ["scancel --signal=USR1 7", "saved", "scontrol requeue 7"]
    assert process.returncode == 0


def test_a_training_that_fails_to_save_when_time_is_up_counts_as_a_failure(start, tmp_path):
    (tmp_path / "srun").write_text(SRUN.replace("exit 0' USR1", "exit 1' USR1"))
    (tmp_path / "a run").mkdir()
    (tmp_path / "a run" / "failures").write_text("3")
    process = start(tenths=200, restarts=3)
    while not (tmp_path / "srun.pid").exists():
        time.sleep(0.02)
    time.sleep(0.2)  # the job is in its wait
    process.send_signal(signal.SIGUSR1)
    assert calls(process, tmp_path)[1:] == ["scancel --signal=USR1 7", "saved"]
    assert process.returncode == 1
