"""Which launcher started a process is told by its environment."""

import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from icve.training.run.launchers import DeepSpeedEnvironment, cluster_environment

RANKS = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
DEEPSPEED = {**RANKS, "CROSS_RANK": "1", "CROSS_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3"}


@pytest.fixture
def started_with(monkeypatch):
    def start(variables):
        for name in {*RANKS, *DEEPSPEED, *SLURM, "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"}:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return cluster_environment()

    return start


def test_deepspeeds_launcher_numbers_nodes(started_with):
    # Also within a Slurm allocation, whose variables describe the shell that deepspeed was called from.
    for variables in (DEEPSPEED, {**SLURM, **DEEPSPEED, "SLURM_PROCID": "0"}):
        found = started_with(variables)
        assert isinstance(found, DeepSpeedEnvironment)
        assert (found.node_rank(), found.local_rank(), found.global_rank(), found.world_size()) == (1, 1, 3, 4)
        assert found.creates_processes_externally
    with pytest.raises(ValueError, match=r"num_nodes=1.*does not match the world size \(4\)"):
        found.validate_settings(num_devices=2, num_nodes=1)


def test_torchrun_comes_first_and_nothing_is_left_to_lightning(started_with):
    assert isinstance(started_with({**SLURM, **RANKS, "TORCHELASTIC_RUN_ID": "job"}), TorchElasticEnvironment)
    assert started_with({}) is None
    assert started_with({**SLURM, "SLURM_JOB_NAME": "bash"}) is None  # a shell in an allocation


def test_slurm_does_not_save_inside_a_signal_handler(started_with):
    found = started_with(SLURM)
    assert isinstance(found, SLURMEnvironment)
    assert (found.global_rank(), found.auto_requeue) == (3, False)
    without = {name: value for name, value in SLURM.items() if name != "SLURM_NTASKS_PER_NODE"}
    with pytest.raises(ValueError, match="--nodes and --ntasks-per-node, not --ntasks"):
        started_with(without)
