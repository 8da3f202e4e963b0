import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading

import av
import numpy as np
import pytest

from icve.data.identity import file_digest
from icve.data.media.video import VideoError, read_frames, write_video
from icve.data.media.video_index import index_packets
from icve.runtime.storage import block_cache, files, remote_file
from icve.runtime.storage.files import FileState, file_state, is_plain, listed_files, local_copy, open_file
from icve.runtime.storage.remote_path import RemoteError, as_path, forget
from tests.s3_server import upload

BLOCK = remote_file.BLOCK


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 256, 5 * BLOCK + 12345, dtype=np.uint8).tobytes()


@pytest.fixture
def remote(data, tmp_path, s3):
    """A file of five blocks and a bit in a bucket; nothing asked yet."""
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "big.bin").write_bytes(data)
    url = upload(tmp_path / "up", "s3://files/x")
    s3.reset()
    return as_path(url) / "big.bin"


def test_a_remote_file_reads_as_a_local_one(remote, data):
    rng = np.random.default_rng(1)
    with open_file(remote) as ours:
        for _ in range(40):
            at, count = int(rng.integers(0, len(data))), int(rng.integers(0, 70_000))
            ours.seek(at)
            assert ours.read(count) == data[at : at + count]
        assert ours.seek(-5, io.SEEK_END) == len(data) - 5
        assert ours.read() == data[-5:]
        assert ours.read() == b""


def test_only_the_blocks_that_are_touched_are_asked_for_and_once(remote, data, s3):
    for _ in range(2):  # the second time from the local disk
        with open_file(remote) as file:
            file.seek(2 * BLOCK + 10)
            assert file.read(100) == data[2 * BLOCK + 10 : 2 * BLOCK + 110]
    assert [entry[2] for entry in s3.log if entry[0] == "GET"] == [f"bytes={2 * BLOCK}-{3 * BLOCK - 1}"]


def test_reading_on_asks_for_more_at_once(remote, data, s3):
    with open_file(remote) as file:
        assert file.read() == data
    assert len([entry for entry in s3.log if entry[0] == "GET"]) == 3  # one block, two, then the rest
    assert s3.sent < len(data) + 4096


def test_a_digest_is_that_of_the_same_local_file_and_reads_little(remote, data, s3, tmp_path):
    assert file_digest(remote) == file_digest(tmp_path / "up" / "big.bin")
    assert s3.sent < 1.1 * (1 << 20)


def test_a_changed_object_is_another_file(remote, tmp_path, s3):
    before = file_state(remote)
    assert file_state(remote) == before
    (tmp_path / "up" / "big.bin").write_bytes(b"new")
    upload(tmp_path / "up", "s3://files/x")
    forget()
    assert file_state(remote) != before
    with open_file(remote) as file:
        assert file.read() == b"new"
    assert listed_files(remote.parent) == {"big.bin": file_state(remote)}


def test_the_cache_stays_below_its_size_and_the_oldest_goes_first(tmp_path, s3, monkeypatch):
    monkeypatch.setenv("ICVE_CACHE_GB", "0.001")
    monkeypatch.setattr(block_cache, "_written", 0)
    for number in range(40):
        block_cache.keep_cached(block_cache.key_of(number), bytes(50_000))
        os.utime(block_cache._file(block_cache.key_of(number)), (number, number))
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert held <= 1.1e6
    assert block_cache.read_cached(block_cache.key_of(0)) is None
    assert block_cache.read_cached(block_cache.key_of(39)) == bytes(50_000)


def test_a_damaged_block_is_asked_for_again(remote, data, s3, tmp_path):
    with open_file(remote) as file:
        file.read(10)
    (block,) = (file for file in (tmp_path / "cache" / "blocks").rglob("*") if file.is_file())
    content = bytearray(block.read_bytes())
    content[7] ^= 1
    block.write_bytes(content)
    with open_file(remote) as file:
        assert file.read(10) == data[:10]
    block.write_bytes(b"")  # as after a crash
    with open_file(remote) as file:
        assert file.read(10) == data[:10]


def test_a_full_disk_means_no_cache(remote, data, monkeypatch, caplog):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(block_cache, "whole_file", full)
    with open_file(remote) as file:
        assert file.read() == data
    assert "takes nothing more" in caplog.text
    assert len(caplog.records) == 1


def test_no_cache_is_a_size_too(remote, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ICVE_CACHE_GB", "0")
    with open_file(remote) as file:
        assert file.read() == data
    assert not list((tmp_path / "cache").rglob("*"))
    monkeypatch.setenv("ICVE_CACHE_GB", "much")
    with pytest.raises(ValueError, match="ICVE_CACHE_GB must be a number of gigabytes"):
        block_cache.cache_size()


def test_threads_share_the_cache(remote, data):
    found = []

    def read():
        with open_file(remote) as file:
            found.append(file.read())

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [data] * 4


def test_an_answer_that_is_cut_short_is_asked_for_again(remote, data, s3):
    file_state(remote)
    s3.failures += ["cut", "503"]
    with open_file(remote) as file:
        assert file.read(10) == data[:10]
    s3.failing = "cut"
    with open_file(remote) as file:
        file.seek(4 * BLOCK)
        with pytest.raises(RemoteError, match=r"big\.bin could not be had in 6 attempts"):
            file.read(10)


def test_a_copy_is_made_once_and_again_when_it_changed(remote, data, s3, tmp_path):
    copy = local_copy(remote)
    assert copy.read_bytes() == data
    assert local_copy(remote) == copy
    assert len([entry for entry in s3.log if entry[0] == "GET"]) == 1
    (tmp_path / "up" / "big.bin").write_bytes(b"new")
    upload(tmp_path / "up", "s3://files/x")
    forget()
    assert local_copy(remote).read_bytes() == b"new"
    assert local_copy(tmp_path) == tmp_path


@pytest.fixture
def packed(tmp_path):
    """A video beside, and in, a tar file, with a folder that is only named like one."""
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 48, 3), dtype=np.uint8)
    folder = tmp_path / "packed"
    write_video(folder / "clip.mp4", frames, fps=8)
    write_video(folder / "folder.tar" / "clip.mp4", frames, fps=8)
    with tarfile.open(folder / "a.tar", "w") as archive:
        archive.add(folder / "clip.mp4", "./in/clip.mp4")
        archive.add(folder / "clip.mp4", "x" * 150 + ".mp4")  # a long name, in a header of its own
    return folder


@pytest.mark.parametrize("protocol", ["", "s3", "memory"])
def test_members_of_tars_are_files(packed, s3, protocol):
    root = as_path(upload(packed, f"{protocol}://files/packed")) if protocol else packed
    straight = read_frames(packed / "clip.mp4")
    for name in ("a.tar/in/clip.mp4", f"a.tar/{'x' * 150}.mp4", "folder.tar/clip.mp4"):
        assert np.array_equal(read_frames(root / name), straight)
        assert file_digest(root / name) == file_digest(packed / "clip.mp4")
    assert is_plain(packed / "folder.tar/clip.mp4")
    assert not is_plain(root / "a.tar/in/clip.mp4")
    with pytest.raises(VideoError, match=r"a.tar has no member in/other.mp4"):
        read_frames(root / "a.tar/in/other.mp4")


def test_the_members_of_a_tar_are_looked_up_once(packed, s3, monkeypatch):
    root = as_path(upload(packed, "s3://files/members"))
    file_state(root / "a.tar/in/clip.mp4")
    files.members_of.cache_clear()  # as in another process
    s3.reset()
    file_state(root / "a.tar/in/clip.mp4")
    assert not [entry for entry in s3.log if entry[0] == "GET"]


def test_a_tar_that_is_damaged_or_compressed_is_named(packed):
    whole = (packed / "a.tar").read_bytes()
    (packed / "cut.tar").write_bytes(whole[:1200])
    (packed / "none.tar").write_bytes(b"no tar file" * 100)
    for name in ("cut.tar", "none.tar"):
        with pytest.raises(VideoError, match=f"{name} is (truncated|damaged)"):
            read_frames(packed / name / "in/clip.mp4")


def test_errors_of_a_server_come_through_the_decoder(packed, s3):
    url = as_path(upload(packed, "s3://files/decoder"))
    index_packets(url / "clip.mp4")
    s3.failing = "503"
    # the cache has the file; without it the decoder's own read fails
    for file in (block_cache.cache_folder() / "blocks").rglob("*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(RemoteError, match="could not be had"):
        read_frames(url / "clip.mp4")
    with pytest.raises(RemoteError), av.open(open_file(url / "clip.mp4")) as container:
        next(container.decode(video=0))


def test_a_folder_is_no_file(tmp_path, s3):
    with pytest.raises(IsADirectoryError):
        file_state(tmp_path)
    (tmp_path / "a").write_bytes(b"12")
    assert file_state(tmp_path / "a") == FileState(2, (tmp_path / "a").stat().st_mtime_ns)
    upload(tmp_path, "memory://files/folder")
    with pytest.raises(IsADirectoryError):
        file_state("memory://files/folder")


_READ = """
import hashlib, sys
from icve.runtime.storage.files import open_file
while True:
    with open_file(sys.argv[1]) as file:
        print(hashlib.md5(file.read()).hexdigest(), flush=True)
"""


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_processes_share_a_small_cache_and_may_be_killed(remote, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ICVE_CACHE_GB", "0.003")  # fewer blocks than the file has: all keep and clear all the time
    command = [sys.executable, "-c", _READ, str(remote)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    try:
        expected = hashlib.md5(data).hexdigest()
        for turn in range(6):
            for reader in readers:
                assert reader.stdout.readline().strip() == expected
            if turn == 2:
                readers.pop().kill()
    finally:
        for reader in readers:
            reader.kill()
    with open_file(remote) as file:
        assert file.read() == data
