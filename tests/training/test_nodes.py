"""Runs on two nodes, which here are two launchers on one machine that know each other by a port."""

import json
import signal
import socket

import pytest

from icve.training.checkpoints.stage_record import read_stage
from tests.training.runs import finish, fit, start, steps, strategy, until_steps
from tests.training.test_resharding import assert_same_state

TIME_LIMIT = 200


@pytest.fixture
def start_node(watched, tiny_yaml):
    """Start a process of a run, with these words before `-m icve fit` and variables beside the usual ones."""

    def start_node(before, *arguments, **variables):
        return watched(start(tiny_yaml, *arguments, before=before, variables=variables))

    return start_node


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


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(3 * TIME_LIMIT)
def test_two_nodes_train_as_one_process_and_go_on_as_fewer(start_node, tiny_yaml, tmp_path):
    tiny_yaml.write_text(
        tiny_yaml.read_text().replace("icve.training.optimization.optimizers.MuonAdamW", "torch.optim.AdamW")
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit(tiny_yaml, whole)
    run = [f"--trainer.default_root_dir={parts}"]

    # Groups that share tokens lie within a node, their samples differ between nodes.
    pairs, port = [*run, *strategy("DeepSpeedUlyssesStrategy", 2, 2), "--trainer.max_steps=2"], free_port()
    for agent in [start_node(torchrun(node, 2, 2, port), *pairs, "--trainer.num_nodes=2") for node in (0, 1)]:
        finish(agent, TIME_LIMIT)
    assert_same_state(whole / "checkpoints/step-000002", parts / "checkpoints/step-000002")
    record = json.loads((parts / "environment.json").read_text())
    assert [entry["processes"] for entry in record] == [4]

    # A node is lost and half of the other: what is left goes on.
    alone = [*run, *strategy("DeepSpeedUlyssesStrategy", 1, 1), f"--ckpt_path={parts}"]
    finish(start_node(torchrun(0, 1, 1, free_port()), *alone), TIME_LIMIT)
    assert_same_state(whole / "checkpoints/step-000004", parts / "checkpoints/step-000004")
    for one, two in zip(steps(whole)[2:], steps(parts)[2:], strict=True):
        assert two["ids"] == one["ids"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)

    # Under Slurm, for far too long; its signal ahead of the time limit reaches one task before the other.
    long = [*run, *strategy("DeepSpeedUlyssesStrategy", 1, 1), f"--ckpt_path={parts}", "--trainer.max_steps=100000"]
    port = free_port()
    tasks = [start_node([], *long, "--trainer.num_nodes=2", **slurm(task, port)) for task in (0, 1)]
    until_steps(tasks[0], parts, 6, TIME_LIMIT)
    assert tasks[1].poll() is None
    tasks[1].send_signal(signal.SIGUSR1)
    told, _ = [finish(task, TIME_LIMIT) for task in tasks]
    assert "Told to stop" in told
    assert read_stage(parts / "checkpoints/last")["step"] == len(steps(parts)) > 5
