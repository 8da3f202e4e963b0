import os
import time
import zlib
from types import SimpleNamespace

import pytest

from icve.runtime.storage import block_cache, fetched
from icve.runtime.storage.fetched import DamagedCopy, cached_file, cached_folder, fetch_folder, listed_states, origin_of
from icve.runtime.storage.remote_path import RemoteError, as_path
from tests.s3_server import upload

FILES = {"config.json": b"{}", "inside/weights.bin": bytes(range(256)) * 40, "empty": b""}


@pytest.fixture
def folder(tmp_path, s3):
    """A remote folder of three files."""
    for name, data in FILES.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(data)
    return as_path(upload(tmp_path / "up", f"memory://{tmp_path.name}/model"))


def read(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_folder_is_copied_once_and_known_by_its_url(folder, monkeypatch):
    copy = cached_folder(folder, listed_states(folder))
    assert read(copy) == FILES
    assert copy.name == "model"
    assert origin_of(copy / "inside") == folder / "inside"
    monkeypatch.setattr(fetched, "_fetch", None)
    assert cached_folder(folder, listed_states(folder)) == copy


def test_paths_that_are_no_copies_are_what_they_are(tmp_path):
    assert origin_of(tmp_path / "a" / ".." / "b") == tmp_path / "b"
    assert str(origin_of("s3://bucket/a")) == "s3://bucket/a"


def test_a_file_comes_with_what_is_asked_for_beside_it(folder):
    copy = cached_file(folder / "inside" / "weights.bin", ["settings.json"])
    assert read(copy.parent) == {"weights.bin": FILES["inside/weights.bin"]}
    assert set(read(cached_file(folder / "empty", ["config.json", "no.json"]).parent)) == {"empty", "config.json"}


def test_an_interrupted_copy_is_gone_on_from(folder, tmp_path, monkeypatch):
    target, asked, read_ranges = tmp_path / "copies" / "model", [], fetched.read_ranges
    partial = target.with_name(".model.fetched.tmp")
    (partial / "inside").mkdir(parents=True)
    (partial / "inside" / "weights.bin").write_bytes(FILES["inside/weights.bin"][:1000])
    monkeypatch.setattr(fetched, "_PART", 3000)
    monkeypatch.setattr(fetched, "read_ranges", lambda path, parts: asked.extend(parts) or read_ranges(path, parts))
    assert read(fetch_folder(folder, listed_states(folder), target)) == FILES
    assert sorted(asked) == [(0, 2), (1000, 4000), (4000, 7000), (7000, 10000), (10000, 10240)]
    assert not partial.exists()


def test_what_another_version_left_is_found_by_the_checksum_and_read_again(folder, tmp_path):
    target, name = tmp_path / "copies" / "model", "inside/weights.bin"
    partial = target.with_name(".model.fetched.tmp")
    (partial / "inside").mkdir(parents=True)
    (partial / name).write_bytes(b"another")
    files = {name: listed_states(folder)[name]}
    assert read(fetch_folder(folder, files, target, {name: zlib.crc32(FILES[name])})) == {name: FILES[name]}


def test_damage_there_is_told_and_nothing_appears(folder, tmp_path):
    files = listed_states(folder)
    with pytest.raises(DamagedCopy, match=r"config\.json is not what was written"):
        fetch_folder(folder, files, tmp_path / "copies" / "model", {"config.json": 1})
    assert not (tmp_path / "copies" / "model").exists()


def test_a_file_that_is_replaced_meanwhile_is_not_taken(folder, tmp_path, monkeypatch):
    rest = fetched._fetch_rest

    def replace(source, size, file):
        rest(source, size, file)
        with source.written_whole() as new:
            new.write_bytes(b"[]")

    monkeypatch.setattr(fetched, "_fetch_rest", replace)
    with pytest.raises(RemoteError, match="was replaced while it was copied"):
        fetch_folder(folder, {"config.json": listed_states(folder)["config.json"]}, tmp_path / "copies" / "model")


def test_a_name_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    files = {"../config.json": listed_states(folder)["config.json"]}
    with pytest.raises(ValueError, match=r"a file named \.\./config\.json, which leads out of the folder"):
        fetch_folder(folder, files, tmp_path / "copies" / "model")


def test_no_room_is_said_before_anything_is_copied(folder, monkeypatch):
    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda place: SimpleNamespace(free=100))
    with pytest.raises(ValueError, match=r"cannot be copied into .* 0\.0 free\): free space there, or name another"):
        cached_folder(folder, listed_states(folder))


def test_the_cache_clears_whole_folders_but_none_in_use(folder, monkeypatch):
    monkeypatch.setenv("ICVE_CACHE_GB", "0.000001")
    old, new = (cached_folder(folder, {name: listed_states(folder)[name]}) for name in ("inside/weights.bin", "empty"))
    for file in (old, *old.parent.rglob("*")):
        os.utime(file, (time.time() - 7200,) * 2)
    block_cache._clear(1000)
    assert not old.parent.exists()
    assert new.is_dir()
    block_cache._clear(0)
    assert new.is_dir()
