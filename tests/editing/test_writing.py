"""What stays of the files that an item writes, whatever happens."""

from dataclasses import replace

import av
import numpy as np
import pytest

from icve.data.media import sound
from icve.data.media.video import read_frames
from icve.data.media.video_formats import FORMATS
from icve.editing.items import Item
from icve.editing.jobs import Outcome, Progress, Settings, clip_of
from icve.editing.writing import Entry
from tests.data.media.test_sound import tones, with_sound
from tests.data.media.test_video_formats import with_alpha


@pytest.fixture
def begin(tmp_path):
    """Begin an item with sound and a side-by-side copy."""
    source = with_sound(tmp_path / "source.mp4", "aac", tones("mono"), "mono")
    item = Item("a", "a", source, "source.mp4", "make it red", 0)

    settings = Settings(sampling={}, window=21, budget=32 * 32, side_by_side=True)
    clip = clip_of(item, settings)

    def make(name: str = "mp4") -> Entry:
        of_format = replace(settings, format=name)
        return Entry(Outcome(item, clip), clip, of_format, tmp_path / "out" / of_format.file_name(item), Progress())

    return make


@pytest.fixture
def started(monkeypatch):
    """Processes that make sound ready."""
    start, processes = sound.start, []

    def spied(*arguments, **options):
        processes.append(start(*arguments, **options))
        return processes[-1]

    monkeypatch.setattr(sound, "start", spied)
    return processes


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


def test_sound_is_made_ready_once_and_beside_the_model(begin, started, tmp_path):
    entry = begin()
    assert len(started) == 1
    entry.write(window(entry))
    assert (len(started), entry.outcome.error, entry.outcome.note) == (1, None, None)
    assert files(tmp_path / "out") == ["a.mp4", "side_by_side", "side_by_side/a.mp4"]
    for name in ("a.mp4", "side_by_side/a.mp4"):
        with av.open(str(tmp_path / "out" / name)) as file:
            assert sum(packet.size > 0 for packet in file.demux(audio=0)) > 80


def test_an_item_that_the_model_fails_on_leaves_no_process_and_no_sound(begin, started, tmp_path):
    entry = begin()
    entry.abandon()
    assert started[0].poll() is not None
    assert files(tmp_path / "out") == []


def test_a_source_that_is_gone_when_it_is_begun_fails_alone(begin, tmp_path):
    (tmp_path / "source.mp4").unlink()
    entry = begin()
    assert entry.outcome.error.startswith(f"{entry.path} cannot be written: ")
    entry.write(window(entry))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_windows_with_alpha_are_joined_and_written_by_formats_that_hold_it(begin, tmp_path, name):
    entry = begin(name)
    alpha = np.linspace(0, 255, 20).astype(np.uint8)  # of a frame each
    colours = window(entry)[:20]
    entry.write(np.concatenate([colours, np.broadcast_to(alpha[:, None, None, None], (*colours.shape[:3], 1))], -1))
    if name == "mp4":
        assert entry.outcome.error.endswith("MP4 holds no alpha: choose one of the formats prores4444, vp9, png.")
        assert files(tmp_path / "out") == ["side_by_side"]
        return
    assert entry.outcome.error is None
    assert entry.outcome.note == ("PNG files hold no sound." if name == "png" else None)
    height, width = entry.clip.info.displayed
    found = with_alpha(entry.path, name)
    assert found.shape == (20, height, width, 4)
    assert np.abs(found[..., 3] - alpha[:, None, None]).max() <= 4
    beside = read_frames(tmp_path / "out" / "side_by_side" / "a.mp4")
    assert beside.shape == (20, height, 2 * width, 3)
    assert np.abs(beside[:, :, width + 8 :].mean((1, 2, 3)) - 90 * (alpha / 255)).max() < 4  # over black
    with av.open(str(tmp_path / "out" / "side_by_side" / "a.mp4")) as file:
        assert sum(packet.size > 0 for packet in file.demux(audio=0)) > 80
