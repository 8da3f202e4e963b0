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
