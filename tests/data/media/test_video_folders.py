import errno
import os
from pathlib import Path

import pytest

from icve.data.media.video_folders import VIDEO_SUFFIXES, broken_link, find_videos, is_video, left_out_text

BEGINNINGS = {
    "mp4": b"\0\0\0\x20ftypisom\0\0\2\0",
    "mov": b"\0\0\0\x08wide\0\0\0\0mdat",
    "matroska": bytes.fromhex("1a45dfa3") + b"\x9fB\x86\x81",
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "flv": b"FLV\x01\x05\0\0\0",
    "asf": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
    "mpeg-ps": b"\0\0\x01\xba\x44\0",
    "mpeg-ts": (b"\x47" + bytes(187)) * 5,
    "m2ts": (bytes(4) + b"\x47" + bytes(187)) * 5,
    "ogg": b"OggS\0\2" + bytes(22) + b"\x80theora\3\2",
    "mxf": bytes.fromhex("060e2b34020501010d01"),
    "gif": b"GIF89a\1\0\1\0",
}
OTHERS = {
    "m4a": b"\0\0\0\x20ftypM4A \0\0\2\0",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0",
    "wave": b"RIFF\0\0\0\0WAVEfmt ",
    "vorbis": b"OggS\0\2" + bytes(22) + b"\x01vorbis",
    "text": b"hello\n",
    "empty": b"",
    "G": b"G" * 100,
}


def test_every_file_is_used_or_has_its_reason(tmp_path):
    used = ["a.mp4", "B.MTS", "c.m2ts", "d.3gp", "e.vob", "f.ogv", "g.gif", "h.mxf", "sub/i.mkv", "2024T12:30:00.mp4"]
    (tmp_path / "sub").mkdir()
    for name in [*used, "notes.txt", ".hidden.mp4", "p.jpg", "s.wav", "t.json"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "a.mp4").write_bytes(b"x")
    os.symlink("nowhere.mp4", tmp_path / "broken.mp4")
    os.symlink("nowhere", tmp_path / "broken")
    os.mkfifo(tmp_path / "pipe.mp4")
    found = find_videos(tmp_path)
    assert found.videos == sorted([*used, "broken.mp4"])
    assert found.left_out == {
        ".hidden.mp4": "hidden file",
        ".thumbs": "hidden folder",
        "broken": "broken link",
        "notes.txt": "not a video",
        "p.jpg": "not a video",
        "pipe.mp4": "not a regular file",
        "s.wav": "not a video",
        "t.json": "not a video",
    }
    assert broken_link(tmp_path / "broken.mp4") == "nowhere.mp4"
    assert broken_link(tmp_path / "a.mp4") is None
    text = left_out_text(found.left_out)
    assert text.startswith("8 files are left out. ")
    assert "not a video: 4 (notes.txt, p.jpg, s.wav, ...)" in text
    assert left_out_text({}) == ""


def test_names_that_are_no_text_are_names(tmp_path):
    (tmp_path / "caf\udce9.mp4").write_bytes(b"x")
    (tmp_path / "new\nline \u2028.mp4").write_bytes(b"x")
    assert find_videos(tmp_path).videos == ["caf\udce9.mp4", "new\nline \u2028.mp4"]


def test_linked_folders_are_looked_through_once(tmp_path):
    for folder in ("raw", "elsewhere"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"x")
    os.symlink("../elsewhere", tmp_path / "raw" / "linked")
    os.symlink("..", tmp_path / "elsewhere" / "around")
    os.symlink("elsewhere", tmp_path / "raw" / "nowhere")
    found = find_videos(tmp_path / "raw")
    assert found.videos == ["a.mp4", "linked/a.mp4"]
    assert found.left_out["nowhere"] == "broken link"
    assert found.left_out["linked/around/raw"] == "link to a folder that is among the input"


def test_a_folder_of_results_is_no_input(tmp_path):
    for folder in ("raw", "raw/out"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"x")
    assert find_videos(tmp_path / "raw", tmp_path / "raw" / "out").videos == ["a.mp4"]
    assert find_videos(tmp_path / "raw", tmp_path / "raw" / "out").left_out == {}


def test_what_cannot_be_listed_or_opened_is_counted(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "data").write_bytes(b"x")

    def denied(function):  # by hand: file modes bind no administrator
        def guarded(path, *arguments, **options):
            if Path(path) in (tmp_path / "closed", tmp_path / "data"):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return function(path, *arguments, **options)

        return guarded

    monkeypatch.setattr(os, "scandir", denied(os.scandir))
    monkeypatch.setattr(Path, "open", denied(Path.open))
    left_out = find_videos(tmp_path).left_out
    assert left_out == {
        "closed": "folder cannot be opened (Permission denied)",
        "data": "cannot be opened (Permission denied)",
    }


@pytest.mark.parametrize("kind", BEGINNINGS)
def test_a_file_of_another_name_is_known_by_its_first_bytes(tmp_path, kind):
    for name in ("clip", "clip.backup"):
        (tmp_path / name).write_bytes(BEGINNINGS[kind])
        assert is_video(tmp_path / name)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_first_bytes_are_no_video(tmp_path, kind):
    (tmp_path / "clip").write_bytes(OTHERS[kind])
    assert not is_video(tmp_path / "clip")


def test_a_video_of_a_known_name_is_tried_whatever_it_holds(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"")
    assert is_video(tmp_path / "clip.mp4")
    assert all(suffix == suffix.lower() and suffix[0] == "." for suffix in VIDEO_SUFFIXES)
