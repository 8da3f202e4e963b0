import importlib
import sys

import pytest


@pytest.fixture(scope="module")
def tool():
    return importlib.import_module("tools.bench_checkpoints")  # by a name that new processes know


@pytest.mark.slow
def test_the_13b_model_is_built_without_weights_in_seconds(tool):
    seconds, parameters = tool.build_13b()
    print(f"{parameters} parameters in {seconds:.2f} s")
    assert parameters == 12_821_012_544
    assert seconds < 10


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("format", "dtype"), [("diffusers", None), ("icve", "bfloat16")])
def test_loading_needs_the_model_and_one_shard(tool, format, dtype):
    """Of a model of 450 MB in shards of 50: a second copy of it, or of two shards, would break the limit."""
    result = tool.measure(640, "50MB", dtype, format)
    print(result)
    assert result["shards"] > 5
    assert result["model"] > (400e6 if dtype is None else 200e6)
    assert result["model"] < result["peak"] < result["limit"]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_mapped_weights_take_no_memory_of_the_process(tool):
    result = tool.measure(640, "50MB", None, "diffusers", mapped=True)
    assert result["own"] < 0.1 * result["model"]


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_both_ways_of_writing_are_measured(tool):
    size, ways = tool.measure_stopped(2, 128, 1, 1, 1)
    assert size > 10e6
    assert len(ways) == 2
    assert all(stopped > 0 and slower >= 0 for stopped, slower in ways.values())
