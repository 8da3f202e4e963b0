"""The same stages on a real local Ray cluster."""

import pytest

pytest.importorskip("ray")

from icve.curation import supervisor
from icve.curation.raw_videos import find_inputs
from icve.curation.ray_runner import RayRunner
from icve.curation.runner import LocalRunner, run_pipeline
from icve.curation.stage_list import load_pipeline
from icve.curation.work import StageBroken
from icve.data.manifest import read_manifest
from tests.curation.test_runner import assert_counts_add_up, pipeline_of, rejected, worked

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster(repository):
    import ray

    # Workers import the stages of the tests by name.
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(repository)}},
    )
    yield RayRunner(workers=2, gpus=0)
    ray.shutdown()


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c_drop.mp4", "d.mp4", "e_raise.mp4", "f_die.mp4", "g_hang.mp4"):
        (folder / name).write_bytes(name.encode())
    return folder


STAGES = (("Misbehave", {"limit": 0.5, "batch": 1}), ("Split", {}), ("Keep", {"count": 5}), ("Count", {}), ("Pair", {}))


def test_ray_gives_what_the_local_runner_gives(cluster, videos, tmp_path, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE", 1.5)  # of the local one
    pipeline = load_pipeline(pipeline_of(tmp_path, *STAGES))
    ours = run_pipeline(pipeline, find_inputs(videos), tmp_path / "out", cluster)
    theirs = run_pipeline(pipeline, find_inputs(videos), tmp_path / "local", LocalRunner(1))
    assert_counts_add_up(ours, inputs=7)
    assert ours.rows == 5
    assert sorted(map(str, read_manifest(ours.manifest))) == sorted(map(str, read_manifest(theirs.manifest)))
    assert rejected(tmp_path) == rejected(tmp_path, "local")
    assert {reason for reason, _ in rejected(tmp_path).values()} >= {"error", "timed out", "process died"}
    worked(tmp_path)
    assert run_pipeline(pipeline, find_inputs(videos), tmp_path / "out", cluster) == ours
    assert worked(tmp_path) == []


def test_a_stage_that_cannot_run_says_so(cluster, videos, tmp_path):
    with pytest.raises(StageBroken, match="cannot start: there is no model"):
        run_pipeline(
            load_pipeline(pipeline_of(tmp_path, ("Broken", {}))), find_inputs(videos), tmp_path / "out", cluster
        )
