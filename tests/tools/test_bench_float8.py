import importlib

import pytest


@pytest.fixture
def tool(repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "tools"))  # as for a script: it imports another
    return importlib.import_module("bench_float8")


def test_both_roundings_change_a_step_a_little(tool):
    pytest.importorskip("torchao.float8.float8_linear", reason="icve[fp8] is not installed")
    found = tool.measure(2, 16, (1, 1), (1, 4, 4), 4, seeds=1)
    assert list(found) == list(tool.WAYS)
    for loss, gradient, worst in found.values():
        assert 0 < loss < 0.1
        assert 0 < gradient <= worst < 0.5
    assert found["bfloat16"][1] < found["float8"][1]
