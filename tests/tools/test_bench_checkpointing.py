import importlib.util
import math
import shlex
from functools import partial

import pytest

TINY = shlex.split("--rounds 1 --layers 1 2 --heads 2 --head-dim 16 --grid 1 4 4 --text 4")


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("bench_checkpointing", repository / "tools/bench_checkpointing.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_a_row_of_finite_figures_for_every_mode(tool, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["bench_checkpointing.py", *TINY])
    tool.main()
    head, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("32 visual + 4 text tokens, 1+2 blocks of width 32, float32, ")
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [name for name, *_ in cells] == list(tool.MODES)
    assert cells[0][2::2] == ["1.00"] * 3  # the ratios of keeping all
    for name, *figures in cells:
        waiting, _, peak, *_ = values = [float(figure) for figure in figures]
        assert len(values) == 7
        assert all(math.isfinite(value) and value > 0 for value in values), name
        assert waiting <= peak


def test_full_checkpointing_keeps_the_least_for_backward(tool):
    make = partial(tool.Step, 2, 16, (1, 2), (1, 4, 4), 4, tool.torch.float32, "cpu")
    waiting = {name: figures[0] for name, figures in tool.measure(make, 1).items()}
    assert min(waiting, key=waiting.get) == "full"
    assert max(waiting, key=waiting.get) == "none"
