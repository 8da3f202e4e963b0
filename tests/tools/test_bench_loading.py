import os
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.s3_server import forget_servers

sys.path.insert(0, str(REPOSITORY / "tools"))

import bench_loading


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_samples_from_all_stores_are_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    forget_servers()
    words = ["--stores", "--pairs", "4", "--batch-size", "2", "--batches", "1", "--rounds", "1", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", ["bench_loading.py", *words, "--device", "cpu"])
    bench_loading.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[3:]]
    names = ["local files", "tar files", "object store", "object store, blocks kept", "latent cache"]
    assert [row[0] for row in rows] == [f"| {name}" for name in names]
    assert all(float(cell) > 0 for row in rows for cell in row[1:3])


@pytest.mark.multiprocess
@pytest.mark.timeout(240)
def test_clips_of_films_are_counted(shared_data, tmp_path, capsys):
    video = shared_data / "videos" / "long" / "long_01.mp4"
    film = tmp_path / "film.ts"
    bench_loading.make_film(video, film, "libx264", 2**20)
    assert film.stat().st_size > 2**20
    groups, frames = bench_loading.groups_of_pictures(film, 0)
    assert frames % 120 == 0
    assert groups < film.stat().st_size
    bench_loading.compare_films(video, {"icve": REPOSITORY}, 1, ["ts"])
    row = capsys.readouterr().out.splitlines()[2].split(" | ")
    assert row[0] == "| ts libx264"
    unknown, first, further = (float(cell.split(",")[0]) for cell in row[4:7])
    assert first < unknown, "the stored index was used"
    assert further > 0
