import math
import os
import shlex
import subprocess
import sys

import pytest

TINY = shlex.split("--rounds 1 --steps 1 --size 1 16 16 --blocks 1 1 --heads 1 --threads 1")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(200)
def test_the_table_compares_both_ways(repository):
    done = subprocess.run(
        [sys.executable, repository / "tools" / "bench_encode_ahead.py", *TINY],
        capture_output=True,
        text=True,
        timeout=180,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    head, *table = [line for line in done.stdout.splitlines() if line]
    assert "1 threads an operation, 1 pairs of 1x16x16, encoding is " in head
    rows = [line.strip("|").split("|") for line in table[2:]]
    assert [row[0].strip() for row in rows] == ["encoded in its turn", "encoded ahead"]
    assert all(math.isfinite(float(cell)) and float(cell) > 0 for row in rows for cell in row[1:])
    assert [float(rows[0][column]) for column in (2, 4)] == [1, 1]
