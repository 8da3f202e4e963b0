"""The same stages on a Ray cluster: Ray Data hands shards to a pool of actors, on whichever machines there are.

Every actor holds one watched process, as the local runner does, so that time limits and dead processes cost one row
here too. All machines must see the input and the run's folder under the same paths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from icve.curation.run_folder import Run
from icve.curation.runner import Phase
from icve.curation.supervisor import Supervisor
from icve.curation.work import StageBroken


class _ShardActor:
    """Brings the shards of a batch through a phase."""

    def __init__(self, run: Run, phase: Phase) -> None:
        self._supervisor = Supervisor(run, phase.numbers, {} if phase.needs == "gpu" else {"OMP_NUM_THREADS": "1"})

    def __call__(self, batch: dict) -> dict:
        rows, broken = [], []
        for shard in batch["shard"]:
            try:
                rows.append(self._supervisor.work("work", str(shard)))
                broken.append("")
            except StageBroken as error:  # told as data: Ray would try the shard again, and bury the sentence
                rows.append(0)
                broken.append(str(error))
        return {"rows": rows, "broken": broken}

    def __del__(self) -> None:
        self._supervisor.stop()


class RayRunner:
    """Ray Data with a pool of actors per phase; connects to the running cluster (`RAY_ADDRESS`) or starts a local one.

    Args:
        workers: actors for CPU stages, one core each.
        gpus: actors for GPU stages, one device each; 0 runs them in one actor on the CPU.

    Raises:
        ImportError: Ray is not installed.
    """

    def __init__(self, workers: int, gpus: int) -> None:
        try:
            import ray.data  # noqa: F401
        except ImportError as error:
            raise ImportError("--runner ray needs Ray: pip install 'icve[ray]'.") from error
        self.workers, self.gpus = workers, gpus

    def __call__(self, run: Run, phase: Phase, shards: Sequence[str], advance: Callable[[int], None]) -> None:
        """Bring shards through a phase; `advance` is told the rows of each that is finished.

        Raises:
            StageBroken: a stage cannot run.
        """
        if not shards:
            return
        import ray.data

        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)
        on_gpu = phase.needs == "gpu" and self.gpus > 0
        actors = self.gpus if on_gpu else 1 if phase.needs == "gpu" else self.workers
        data = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        done = data.map_batches(
            _ShardActor,
            fn_constructor_args=(run, phase),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(actors, len(shards)))),
            num_cpus=1,
            num_gpus=1 if on_gpu else None,
        )
        for row in done.iter_rows():
            if row["broken"]:
                raise StageBroken(row["broken"])
            advance(row["rows"])
