"""What stays of the files that an item writes, whatever happens."""

import numpy as np
import pytest

from icve.editing.items import Item
from icve.editing.jobs import Outcome, Progress, Settings, clip_of
from icve.editing.writing import Entry


@pytest.fixture
def begin(make_clip, tmp_path):
    """Begin an item with a side-by-side copy."""
    settings = Settings(sampling={}, window=5, budget=32 * 32, side_by_side=True)
    item = Item("a", "a", make_clip("source.mp4", frames=5), "source.mp4", "make it red", 0)

    def make() -> Entry:
        return Entry(Outcome(item, clip_of(item, settings)), settings, tmp_path / "out" / "a.mp4", Progress())

    return make


def window(entry: Entry) -> np.ndarray:
    height, width, frames = entry.outcome.clip.shape
    return np.full((frames, height, width, 3), 90, np.uint8)


def files(folder) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_where_one_file_cannot_be_put_into_place_the_other_leaves_nothing(begin, tmp_path):
    (tmp_path / "out" / "side_by_side" / "a.mp4").mkdir(parents=True)
    entry = begin()
    entry.write(window(entry))
    assert entry.outcome.error == f"{entry.path} cannot be written: Is a directory."
    assert files(tmp_path / "out") == ["side_by_side", "side_by_side/a.mp4"]


def test_what_killed_runs_left_is_removed_in_both_folders(begin, tmp_path):
    folders = [tmp_path / "out", tmp_path / "out" / "side_by_side"]
    folders[1].mkdir(parents=True)
    for folder in folders:
        for name in (f".a.mp4.{2**30}.tmp", f".a.mp4.sound.{2**30}.tmp", ".a.mp4.1.tmp", f".b.mp4.{2**30}.tmp"):
            (folder / name).write_text("")
    entry = begin()
    entry.write(window(entry))
    assert entry.outcome.error is None
    for folder in folders:
        left = {path.name for path in folder.iterdir() if path.is_file()}
        assert left == {"a.mp4", ".a.mp4.1.tmp", f".b.mp4.{2**30}.tmp"}  # a living process's, another file's
