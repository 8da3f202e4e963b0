import importlib
import math
import os
import shlex
import subprocess
import sys

import pytest

TINY = shlex.split("--rounds 2 --layers 1 1 --heads 2 --head-dim 16 --grid 1 4 4 --text 4")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_the_table_has_a_row_of_finite_figures_for_every_way(repository):
    done = subprocess.run(
        [sys.executable, repository / "tools" / "bench_sequence_parallel.py", *TINY],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    head, *table = [line for line in done.stdout.splitlines() if line]
    assert head.startswith("2 processes (cpu), 32 visual + 4 text tokens, 1+1 blocks of width 32, float32, ")
    rows = {}
    for line in table[2:]:
        way, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[way] = [float(cell.removesuffix("%")) for cell in cells]
    assert list(rows) == ["at once", "overlapped", "none"]
    for seconds, ratio, share, hidden in rows.values():
        assert math.isfinite(seconds)
        assert seconds > 0
        assert math.isfinite(ratio)
        assert ratio > 0
        assert math.isfinite(share)  # of so small a step these two can be below zero
        assert math.isfinite(hidden)
    assert rows["at once"][1] == 1
    assert [rows["at once"][3], rows["none"][2], rows["none"][3]] == [0, 0, 100]


@pytest.mark.parametrize("sizes", [["--heads", "3"], ["--grid", "1", "3", "3"]])
def test_what_the_processes_cannot_share_evenly_is_refused(sizes, repository, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repository / "tools"))  # as for a script: it imports another tool
    tool = importlib.import_module("bench_sequence_parallel")
    monkeypatch.setattr("sys.argv", ["bench_sequence_parallel.py", *TINY, *sizes])
    with pytest.raises(SystemExit) as stop:
        tool.main()
    assert stop.value.code == 2
    assert "must divide" in capsys.readouterr().err
