"""Packet indices beside a manifest: made once, the same as those made anew, and never of another file."""

import dataclasses
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from icve.data.media import stored_index, video_index
from icve.data.media.video import VideoError, iterate_frames, probe, read_frames
from icve.data.media.video_index import forget, index_packets
from tests.data.media.streams import X264, noisy, write

NAME = stored_index.NAME


@pytest.fixture(autouse=True)
def nothing_remembered():
    forget()
    yield
    forget()


@pytest.fixture
def scans(monkeypatch):
    """The files whose packets are looked at."""
    scanned, scan = [], video_index._scanned

    def noting(path, size):
        scanned.append(os.path.basename(path))
        return scan(path, size)

    monkeypatch.setattr(video_index, "_scanned", noting)
    return scanned


def use(folder):
    """As a process that has just begun."""
    forget()
    return stored_index.use(folder, folder)


def keep(folder, *names):
    store = use(folder)
    for name in names:
        probe(folder / name)
    store.write()


def outcome(path):
    try:
        return read_frames(path)
    except VideoError as error:
        return str(error)


def same(ours, theirs):
    for field in dataclasses.fields(ours):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        assert type(a) is type(b) or np.isscalar(a), field.name
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name
    assert np.array_equal(ours.seconds, theirs.seconds)


def videos(folder):
    """One of every kind of index: counted, decoded, searched by bytes, of a variable rate, and without times."""
    write(folder / "a.mp4", noisy(20), options=X264 | {"g": "6"})
    write(folder / "b.mkv", noisy(12), times=[0, 40, 80, 200, 210, 900, 940, 980, 1020, 1060, 1100, 1200])
    write(folder / "c.ts", noisy(24), options=X264 | {"g": "6", "bf": "2"})
    write(folder / "d.avi", noisy(9), "mpeg4")
    write(folder / "e.mp4", noisy(1))
    write(folder / "f.mp4", noisy(2))
    return ["a.mp4", "b.mkv", "c.ts", "d.avi", "e.mp4", "f.mp4"]


def test_a_stored_index_is_the_one_that_was_made(tmp_path, scans):
    names = videos(tmp_path)
    made = {name: index_packets(tmp_path / name) for name in names}
    pixels = {name: read_frames(tmp_path / name) for name in names}
    keep(tmp_path, *names)
    scans.clear()
    use(tmp_path)
    for name in names:
        same(index_packets(tmp_path / name), made[name])
        assert np.array_equal(read_frames(tmp_path / name), pixels[name])
        last = len(pixels[name]) - 1
        assert np.array_equal(read_frames(tmp_path / name, [last]), pixels[name][last:])
    assert not scans


def test_it_moves_with_its_folder_and_knows_copies_by_their_content(tmp_path, scans):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "a.mp4", noisy(8))
    keep(tmp_path / "set", "a.mp4")
    (tmp_path / "set").rename(tmp_path / "moved")
    copied = tmp_path / "moved" / "a.mp4"
    os.utime(copied, ns=(1, 1))
    use(tmp_path / "moved")
    scans.clear()
    assert probe(copied).frames == 8
    assert not scans


def test_a_file_that_was_replaced_is_looked_at_again(tmp_path, scans):
    path = tmp_path / "a.mp4"
    write(path, noisy(8))
    keep(tmp_path, "a.mp4")
    size = path.stat().st_size
    write(path, noisy(8, seed=1))
    data = path.read_bytes()
    path.write_bytes(data[:size].ljust(size, b"\0"))  # a damaged one of the very size
    use(tmp_path)
    scans.clear()
    first = outcome(path)
    assert scans == ["a.mp4"]
    forget()
    assert np.array_equal(outcome(path), first)


def test_damaged_files_are_refused_with_and_without_it(tmp_path):
    write(tmp_path / "whole.mp4", noisy(20), options=X264 | {"g": "6"})
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    store = use(tmp_path)
    for _ in range(2):
        with pytest.raises(VideoError):
            probe(tmp_path / "cut.mp4")
    probe(tmp_path / "whole.mp4")
    store.write()
    assert pa.ipc.open_file(str(tmp_path / NAME)).read_all()["path"].to_pylist() == ["whole.mp4"]
    # damaged where no packet is, so that only decoding can tell, and not noticed by its time
    stat = (tmp_path / "whole.mp4").stat()
    at = len(data) // 2
    (tmp_path / "whole.mp4").write_bytes(data[:at] + bytes(400) + data[at + 400 :])
    os.utime(tmp_path / "whole.mp4", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    use(tmp_path)
    with pytest.raises(VideoError, match="damaged"):
        list(iterate_frames(tmp_path / "whole.mp4"))


def test_a_damaged_index_is_made_anew(tmp_path, scans):
    write(tmp_path / "a.mp4", noisy(8))
    keep(tmp_path, "a.mp4")
    whole = (tmp_path / NAME).read_bytes()
    at = whole.index(b'"frames": 8')
    for data in (
        whole[: len(whole) // 2],
        b"",
        b"no arrow file at all",
        whole[: at + 10] + b"9" + whole[at + 11 :],
    ):
        (tmp_path / NAME).write_bytes(data)
        scans.clear()
        keep(tmp_path, "a.mp4")
        assert scans == ["a.mp4"]
        assert probe(tmp_path / "a.mp4").frames == 8
        assert pa.ipc.open_file(str(tmp_path / NAME)).num_record_batches >= 1


def test_an_index_of_another_format_is_made_anew(tmp_path, scans, monkeypatch):
    write(tmp_path / "a.mp4", noisy(8))
    keep(tmp_path, "a.mp4")
    monkeypatch.setattr(stored_index, "_SCHEMA", stored_index._SCHEMA.with_metadata({"icve.video_index": "older"}))
    scans.clear()
    keep(tmp_path, "a.mp4")
    keep(tmp_path, "a.mp4")
    assert scans == ["a.mp4"]


def test_processes_add_to_one_index(tmp_path, scans):
    names = [f"{number}.mp4" for number in range(20)]
    for name in names:
        write(tmp_path / name, noisy(2))
    stores = [stored_index.StoredIndex(tmp_path) for _ in names]  # each as a process of its own sees it
    for name, store in zip(names, stores, strict=True):
        path = str(tmp_path / name)
        stat = os.stat(path)
        digest = stored_index.file_digest(path)
        store.add(path, stat.st_mtime_ns, stat.st_size, digest, index_packets(path), 0.0)
    for store in stores:
        store.write()
    assert pa.ipc.open_file(str(tmp_path / NAME)).num_record_batches < 18  # they are merged now and then
    use(tmp_path)
    scans.clear()
    assert [probe(tmp_path / name).frames for name in names] == [2] * 20
    assert not scans


def test_it_is_written_by_itself_after_a_second_of_work(tmp_path):
    write(tmp_path / "a.mp4", noisy(2))
    store = stored_index.StoredIndex(tmp_path)
    index = index_packets(tmp_path / "a.mp4")
    store.add(str(tmp_path / "a.mp4"), 1, 1, "x", index, 0.6)
    assert not store.file.exists()
    store.add(str(tmp_path / "b.mp4"), 1, 1, "x", index, 0.6)
    assert store.file.exists()


def test_nothing_is_written_into_a_folder_that_is_read_only(tmp_path, scans):
    write(tmp_path / "a.mp4", noisy(2))
    tmp_path.chmod(0o555)
    try:
        store = use(tmp_path)
        assert probe(tmp_path / "a.mp4").frames == probe(tmp_path / "a.mp4").frames == 2
        assert scans == ["a.mp4"], "it is remembered by the process"
        store.write()
    finally:
        tmp_path.chmod(0o755)
    assert not list(tmp_path.glob(f"*{NAME}*"))


def test_only_files_below_its_roots_are_added(tmp_path):
    for folder in ("in", "out"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.mp4", noisy(2))
    forget()
    store = stored_index.use(tmp_path, tmp_path / "in")
    probe(tmp_path / "in" / "a.mp4")
    probe(tmp_path / "out" / "a.mp4")
    store.write()
    assert pa.ipc.open_file(str(store.file)).read_all()["path"].to_pylist() == ["in/a.mp4"]


def test_transport_streams_are_read_from_the_key_frame(tmp_path, monkeypatch):
    """By its place in the file: a search by time ends behind it, and decoding would begin at the file's start."""
    path = tmp_path / "a.ts"
    write(path, noisy(60), options=X264 | {"g": "10", "bf": "2"})
    whole = read_frames(path)
    decoded, shown = [], video_index.shown_frames

    def counting(*arguments):
        for frame in shown(*arguments):
            decoded.append(frame)
            yield frame

    monkeypatch.setattr("icve.data.media.video.shown_frames", counting)
    for number in (3, 25, 47, 59):
        decoded.clear()
        assert np.array_equal(read_frames(path, [number])[0], whole[number])
        assert len(decoded) <= 10 + number % 10


def test_a_copied_set_need_not_be_indexed_again(tmp_path, scans):
    (tmp_path / "one").mkdir()
    write(tmp_path / "one" / "a.mkv", noisy(4))
    keep(tmp_path / "one", "a.mkv")
    shutil.copytree(tmp_path / "one", tmp_path / "two", copy_function=shutil.copyfile)
    scans.clear()
    keep(tmp_path / "two", "a.mkv")
    keep(tmp_path / "two", "a.mkv")
    assert not scans
