import importlib.util
import math
import shlex

import pytest


@pytest.mark.slow
def test_the_table_has_a_row_for_every_way_of_waiting(repository, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_busy", repository / "tools/bench_busy.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    # In this process: each of its own would import torch.
    own = {"frames": 1, "dtype": "float32"}
    monkeypatch.setattr(tool, "measured", lambda *_: tool.step_seconds(own, steps=1, batch=1))
    options = shlex.split("--busy 1 --steps 1 --batch 1 --frames 1 --dtypes float32")
    monkeypatch.setattr("sys.argv", ["bench_busy.py", *options])
    tool.main()
    *_, head, _, first, second, third = capsys.readouterr().out.splitlines()
    assert "beside 1, s" in head
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (first, second, third)]
    assert [row[2] for row in cells] == list(tool.WAYS)
    assert all(math.isfinite(float(cell)) and float(cell) > 0 for row in cells for cell in row[3:])
