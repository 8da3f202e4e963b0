import pickle
from pathlib import Path

import pytest

from icve.runtime.storage.remote_path import RemoteError, RemotePath, as_path, is_url, refuse_url, request
from tests.s3_server import upload


def test_a_url_is_a_path_like_others():
    path = as_path("s3://bucket/folder/clip.mp4")
    assert str(path) == "s3://bucket/folder/clip.mp4"
    assert (path.name, path.suffix, path.protocol) == ("clip.mp4", ".mp4", "s3")
    assert str(path.parent / "other.mp4") == "s3://bucket/folder/other.mp4"
    assert path.relative_to("s3://bucket") == Path("folder/clip.mp4")
    assert path.is_relative_to("s3://bucket/folder")
    assert not path.is_relative_to("s3://other")
    assert pickle.loads(pickle.dumps(path)) == path
    assert isinstance(as_path(Path("s3://bucket/a")), RemotePath)  # pathlib takes a slash away
    assert str(as_path("s3://bucket/a/../b//c/")) == "s3://bucket/b/c"


def test_local_paths_stay_what_they_are(tmp_path):
    assert as_path("file:///a/b") == Path("/a/b")
    for text in ("a/b", "/a/b", "a:b", "C:/a", "12:30/clip.mp4"):
        assert as_path(text) == Path(text)
        assert not is_url(text)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://key:secret@bucket/a", "holds a password: give credentials in the environment"),
        ("s3:///a", None),
        ("s3://", "names no bucket or host"),
    ],
)
def test_urls_with_passwords_or_without_a_place_are_refused(url, told):
    if told is None:
        assert as_path(url)
        return
    with pytest.raises(ValueError, match=told) as caught:
        as_path(url)
    assert "secret" not in str(caught.value)


def test_results_are_not_written_to_urls():
    with pytest.raises(ValueError, match=r"--output is s3://a/b, a URL"):
        refuse_url("--output", "s3://a/b")
    refuse_url("--output", "a/b")


@pytest.mark.parametrize("protocol", ["s3", "memory"])
def test_folders_are_listed(tmp_path, s3, protocol):
    for name in ("a/1.txt", "a/2.bin", "3.txt"):
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_text(name)
    folder = as_path(upload(tmp_path / "up", f"{protocol}://listed/x"))
    assert list(folder.listing()) == ["3.txt", "a/1.txt", "a/2.bin"]
    assert [path.name for path in folder.iterdir()] == ["3.txt"]
    assert [path.name for path in folder.glob("*/*.txt")] == ["1.txt"]
    assert (folder / "a").is_dir()
    assert (folder / "3.txt").is_file()
    assert not (folder / "b").exists()
    assert (folder / "a" / "1.txt").read_text() == "a/1.txt"
    with (folder / "new.txt").written_whole() as file:
        file.write_text("new")
    assert (folder / "new.txt").read_bytes() == b"new"
    (folder / "new.txt").unlink()
    (folder / "new.txt").unlink(missing_ok=True)
    assert not (folder / "new.txt").exists()


def test_a_failed_write_uploads_nothing(s3):
    file = as_path("memory://listed/failed.txt")

    def fail():
        with file.written_whole() as local:
            local.write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not file.exists()


def test_attempts_are_counted_and_may_be_set(s3, monkeypatch):
    tries = []

    def fail(files):
        tries.append(files)
        raise OSError("busy")

    with pytest.raises(RemoteError, match=r"in 6 attempts over \d+ s \(busy\)"):
        request(as_path("memory://a"), fail)
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "2")
    with pytest.raises(RemoteError, match="in 2 attempts"):
        request(as_path("memory://a"), fail)
    assert len(tries) == 8
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "none")
    with pytest.raises(ValueError, match="must be a whole number"):
        request(as_path("memory://a"), fail)


def test_what_cannot_get_better_is_not_tried_again(s3, monkeypatch):
    with pytest.raises(RemoteError, match="cannot be asked for"):
        as_path("nosuch://bucket/a").exists()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    with pytest.raises(RemoteError, match="needs credentials, and there are none"):
        as_path("s3://bucket/a").exists()
    assert not s3.log
