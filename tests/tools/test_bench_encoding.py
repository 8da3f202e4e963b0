import math
import os
import shlex
import subprocess
import sys

import pytest

TINY = shlex.split("--rounds 1 --size 64 96 --frames 5 --tile 64 48 16 12")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(280)
def test_the_table_compares_both_ways_to_the_same_latents(repository):
    done = subprocess.run(
        [sys.executable, repository / "tools" / "bench_encoding.py", *TINY],
        capture_output=True,
        text=True,
        timeout=250,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    head, *table = [line for line in done.stdout.splitlines() if line]
    assert head.startswith("2 processes (cpu), 1 pairs of 64x96x5 at once, ")
    assert float(head.rsplit(" ", 1)[1]) < 1e-5
    rows = {}
    for line in table[2:]:
        way, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[way] = [float(cell.removesuffix("x")) for cell in cells]
    assert list(rows) == ["each all", "shared"]
    assert all(math.isfinite(figure) for row in rows.values() for figure in row)
    assert rows["each all"][2] == 1
    assert rows["shared"][3] == pytest.approx(rows["each all"][3] / 2, abs=0.01)  # of what the network sees
    assert rows["shared"][4] > rows["shared"][5] > 0 == rows["each all"][4]
