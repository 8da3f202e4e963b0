"""What started the processes of a run: torchrun, Slurm's srun, DeepSpeed's launcher, or Lightning itself."""

import os

from lightning.pytorch.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment


class DeepSpeedEnvironment(TorchElasticEnvironment):
    """Processes that `deepspeed --hostfile ...` started; it tells ranks in the variables that torchrun does.

    Lightning knows this launcher on one node only: on several, every node would take itself for the first.
    """

    @staticmethod
    def detect() -> bool:
        return {"CROSS_RANK", "CROSS_SIZE", "RANK", "LOCAL_RANK", "WORLD_SIZE"} <= os.environ.keys()

    def node_rank(self) -> int:
        return int(os.environ["CROSS_RANK"])


def cluster_environment() -> ClusterEnvironment | None:
    """Lightning's plugin for the launcher of this process; None where Lightning starts the processes itself.

    Raises:
        ValueError: Slurm was asked for processes in a way that Lightning cannot count.
    """
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if DeepSpeedEnvironment.detect():
        return DeepSpeedEnvironment()
    if SLURMEnvironment.detect():
        try:
            # Its requeueing writes a checkpoint inside a signal handler: wherever each process is at that moment, and
            # they wait for each other. StopOnSignal does it between two steps.
            return SLURMEnvironment(auto_requeue=False)
        except RuntimeError as error:
            raise ValueError(f"Slurm is to be given --nodes and --ntasks-per-node, not --ntasks ({error}).") from error
    return None
