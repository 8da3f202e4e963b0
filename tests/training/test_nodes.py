"""Runs on two nodes, which here are two launchers on one machine that know each other by a port."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from icve.training.checkpoint_io import read_stage
from tests.training.test_resharding import assert_same_state, sharded
from tests.training.test_strategies import fit, steps

TIME_LIMIT = 200


@pytest.fixture
def start(watched, tiny_yaml):
    """Start a process of a run, with these words before `-m icve fit` and variables beside the usual ones."""

    def start(before, *arguments, **variables):
        command = [sys.executable, *before, "-m", "icve", "fit", "-c", tiny_yaml, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        return watched(subprocess.Popen(list(map(str, command)), env=environment, **streams))

    return start


def torchrun(node, nodes, processes, port):
    options = {"nnodes": nodes, "node_rank": node, "nproc_per_node": processes, "local_addr": "127.0.0.1"}
    options |= {"rdzv_backend": "c10d", "rdzv_id": "test", "rdzv_endpoint": f"127.0.0.1:{port}"}
    return ["-m", "torch.distributed.run", *(f"--{name}={value}" for name, value in options.items())]


def slurm(task, port):
    """What srun tells the processes of two nodes with one task each."""
    variables = {"NTASKS": 2, "NTASKS_PER_NODE": 1, "NNODES": 2, "PROCID": task, "NODEID": task, "LOCALID": 0}
    variables |= {"JOB_ID": 4711, "JOB_NAME": "train", "NODELIST": "node[0-1]"}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {f"SLURM_{name}": str(value) for name, value in variables.items()} | address


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def finish(*processes):
    outputs = [process.communicate(timeout=TIME_LIMIT)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs[0][-3000:]
    return outputs


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(3 * TIME_LIMIT)
def test_two_nodes_train_as_one_process_and_go_on_as_fewer(start, tiny_yaml, tmp_path):
    tiny_yaml.write_text(tiny_yaml.read_text().replace("icve.training.optimizers.MuonAdamW", "torch.optim.AdamW"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit(tiny_yaml, whole).returncode == 0
    run = [f"--trainer.default_root_dir={parts}"]

    # Groups that share tokens lie within a node, their samples differ between nodes.
    pairs, port = [*run, *sharded("DeepSpeedUlyssesStrategy", 2, 2), "--trainer.max_steps=2"], free_port()
    finish(*(start(torchrun(node, 2, 2, port), *pairs, "--trainer.num_nodes=2") for node in (0, 1)))
    assert_same_state(whole / "checkpoints/step-000002", parts / "checkpoints/step-000002")
    record = json.loads((parts / "environment.json").read_text())
    assert [entry["processes"] for entry in record] == [4]

    # A node is lost and half of the other: what is left goes on.
    alone = [*run, *sharded("DeepSpeedUlyssesStrategy", 1, 1), f"--ckpt_path={parts}"]
    finish(start(torchrun(0, 1, 1, free_port()), *alone))
    assert_same_state(whole / "checkpoints/step-000004", parts / "checkpoints/step-000004")
    for one, two in zip(steps(whole)[2:], steps(parts)[2:], strict=True):
        assert two["ids"] == one["ids"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)

    # Under Slurm, for far too long; its signal ahead of the time limit reaches one task before the other.
    long = [*run, *sharded("DeepSpeedUlyssesStrategy", 1, 1), f"--ckpt_path={parts}", "--trainer.max_steps=100000"]
    port = free_port()
    tasks = [start([], *long, "--trainer.num_nodes=2", **slurm(task, port)) for task in (0, 1)]
    deadline = time.monotonic() + TIME_LIMIT
    while len(steps(parts)) < 6:
        assert [task.poll() for task in tasks] == [None, None]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    tasks[1].send_signal(signal.SIGUSR1)
    assert "Told to stop" in finish(*tasks)[0]
    assert read_stage(parts / "checkpoints/last")["step"] == len(steps(parts)) > 5
