"""Large manifests are converted once and mapped by all."""

import json
import os
import pickle
import subprocess
import sys

import pytest

from icve.data import manifest_index
from icve.data.manifest import ManifestError, read_manifest, write_part
from icve.data.manifest_index import mapped_manifest

GOOD = {"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "make it red", "note": [1, {"a": 2}]}


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch, tmp_path):
    monkeypatch.setattr(manifest_index, "_SMALL", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def write(path, count=50, **more):
    rows = [
        GOOD | {"source_start": number, "edit_type": ["add", 3, None][number % 3]} | more for number in range(count)
    ]
    rows[7]["width"] = -1
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def indices(folder):
    return sorted(folder.rglob("*.arrow"))


def test_a_mapped_manifest_has_the_rows_that_are_read(tmp_path, monkeypatch):
    path = write(tmp_path / "set" / "m.jsonl")
    plain = read_manifest(path, partial=True)
    made = mapped_manifest(path)
    monkeypatch.setattr(manifest_index, "read_manifest", None)  # nothing is read again
    for mapped in (made, mapped_manifest(path), pickle.loads(pickle.dumps(mapped_manifest(path)))):
        rows = [{name: value for name, value in row.items() if name != "note"} for row in plain]
        assert list(mapped) == rows
        assert [list(row) for row in mapped] == [list(row) for row in rows]
        assert mapped.root == plain.root
        told = [(record.number, record.id, record.reason) for record in mapped.rejected]
        assert told == [(record.number, record.id, record.reason) for record in plain.rejected]
    assert [row["id"] for row in mapped.part(2, 3)] == [row["id"] for row in list(plain)[1::3]]
    (file,) = indices(tmp_path)
    assert file.parent == path.parent / ".m.jsonl.index"


def test_what_changed_is_read_again_and_the_old_index_goes(tmp_path):
    path = write(tmp_path / "set" / "m.jsonl")
    mapped_manifest(path)
    assert mapped_manifest(path, columns={"note": "caption"}).names != ()
    assert len(indices(tmp_path)) == 2
    write(path, 60)
    assert len(mapped_manifest(path)) == 59
    assert len(indices(tmp_path)) == 1
    write_part([GOOD], tmp_path / "parts", 0)
    assert len(mapped_manifest(tmp_path / "parts")) == 1
    write_part([GOOD], tmp_path / "parts", 1)
    assert len(mapped_manifest(tmp_path / "parts")) == 2
    path.write_text("{")
    with pytest.raises(ManifestError, match="cut off or damaged"):
        mapped_manifest(path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_edit_in_place_that_keeps_size_and_time_is_seen(tmp_path):
    path = write(tmp_path / "set" / "m.jsonl")
    before = path.stat()
    assert mapped_manifest(path)[20]["instruction"] == "make it red"
    with path.open("r+b") as file:
        file.write(path.read_bytes().replace(b"red", b"tan"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert mapped_manifest(path)[20]["instruction"] == "make it tan"


@pytest.mark.parametrize("harm", ["", "cut", "zeros"])
def test_a_damaged_index_is_made_anew(tmp_path, harm):
    path = write(tmp_path / "set" / "m.jsonl")
    whole = list(mapped_manifest(path))
    (file,) = indices(tmp_path)
    content = file.read_bytes()
    file.unlink()  # not in place: it may be mapped
    file.write_bytes({"": b"", "cut": content[:-50], "zeros": bytes(len(content))}[harm])
    assert list(mapped_manifest(path)) == whole
    assert file.read_bytes() == content


def test_a_place_that_cannot_be_written_is_done_without(tmp_path):
    path = write(tmp_path / "set" / "m.jsonl")
    (path.parent / ".m.jsonl.index").write_text("in the way")
    assert len(mapped_manifest(path)) == 49
    (file,) = indices(tmp_path)
    assert file.is_relative_to(tmp_path / "xdg" / "icve")
    file.unlink()
    other = tmp_path / "file"
    other.write_text("no folder")
    os.environ["XDG_CACHE_HOME"] = str(other)
    assert len(mapped_manifest(path)) == 49
    assert indices(tmp_path) == []


def test_small_manifests_have_no_index(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_index, "_SMALL", 1 << 20)
    path = write(tmp_path / "set" / "m.jsonl")
    assert len(mapped_manifest(path)) == 49
    assert indices(tmp_path) == []


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_of_several_processes_one_converts(tmp_path):
    path = write(tmp_path / "set" / "m.jsonl", 2000)
    code = (
        "import sys, icve.data.manifest_index as index; index._SMALL = 0; read, times = index.read_manifest, []; "
        "index.read_manifest = lambda *a, **o: times.append(1) or read(*a, **o); "
        "print(len(index.mapped_manifest(sys.argv[1])), len(times))"
    )
    command = [sys.executable, "-c", code, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = sorted(process.communicate(timeout=100)[0].split() for process in running)
    assert told == [["1999", "0"], ["1999", "0"], ["1999", "1"]]
