import io
import tarfile
from pathlib import Path

import pytest

from icve.curation.importers.archives import find_archives, unpack
from icve.curation.importers.importing import import_set
from icve.data.manifest import ManifestError
from tests.curation.importers.reports import checked


def make_tar(path: Path, members, compressed=True):
    """Members: name → bytes, or a TarInfo that is written without content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if compressed else "w") as tar:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(content) if isinstance(content, bytes) else 0
            tar.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)


def test_only_needed_members_are_unpacked(put, tmp_path, video):
    records = [
        {"source_path": f"source/{n}.mp4", "instruction": f"Make it {n} style", "edited_path": f"global_style1/{n}.mp4"}
        for n in "ab"
    ]
    source = put(files={"training_metadata/all.json": records, "videos/source/a.mp4": True})
    # The archive of one folder holds the folder too, that of the other does not and comes in parts.
    make_tar(source / "videos/source/source.tar.gz", {"source/b.mp4": video[9], "source/c.mp4": video[9]})
    make_tar(tmp_path / "whole.tar.gz", {f"{n}.mp4": video[7] for n in "abc"})
    whole = (tmp_path / "whole.tar.gz").read_bytes()
    for number in range(3):
        piece = whole[number * len(whole) // 3 : (number + 1) * len(whole) // 3]
        put(files={f"videos/global_style1/global_style1.tar.gz.0{number}": piece})
    assert import_set("ditto", source, tmp_path / "out").kept == 0
    report = import_set("ditto", source, tmp_path / "out", extract=True)
    assert [row["source_frames"] for row in checked(report, source)] == [7, 7]
    assert not list(source.rglob("c.mp4"))
    assert not report.problems


def test_archives_cannot_write_elsewhere(tmp_path):
    root = tmp_path / "root"
    outside = tmp_path / "outside"
    outside.mkdir()
    link, device = tarfile.TarInfo(), tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    device.type = tarfile.FIFOTYPE
    members = {
        "../v/a.mp4": b"1",
        "/v/b.mp4": b"2",
        "v/c.mp4": link,
        "v/d.mp4": device,
        "x/../../v/e.mp4": b"3",
        "unneeded/v.mp4": b"4",
        "v/f.mp4": b"good",
    }
    make_tar(root / "all.tar", members, compressed=False)
    wanted = {f"v/{name}.mp4": (number, f"v/{name}.mp4") for number, name in enumerate("abcdef")}
    assert unpack(root, wanted | {"v.mp4": (9, "v.mp4")}) == []
    assert sorted(path.relative_to(root).as_posix() for path in root.rglob("*")) == ["all.tar", "v", "v/f.mp4"]
    assert (root / "v/f.mp4").read_bytes() == b"good"
    assert not list(outside.iterdir())

    (root / "v/f.mp4").unlink()
    (root / "v").rmdir()
    (root / "v").symlink_to(outside)
    with pytest.raises(ManifestError, match="through a link"):
        unpack(root, wanted)
    assert not list(outside.iterdir())


def test_a_damaged_archive_is_reported_and_the_rest_goes_on(put, tmp_path, video):
    table = "src_video,tgt_video,prompt\nv/a.mp4,v/b.mp4,Add it\nw/a.mp4,w/b.mp4,Add it\n"
    source = put(files={"k.csv": table})
    for folder in "vw":
        make_tar(source / f"{folder}.tar.gz", {f"{folder}/{name}.mp4": video[9] for name in "ab"})
    (source / "v.tar.gz").write_bytes((source / "v.tar.gz").read_bytes()[:-200])
    report = import_set("kiwi", source, tmp_path / "out", extract=True)
    (row,) = checked(report, source)
    assert row["source_path"] == "w/a.mp4"
    assert dict(report.rejected) == {"missing file": 1}
    assert len(report.problems) == 1
    assert "v.tar.gz" in report.problems[0]
    assert not list(source.rglob(".*"))  # nothing half-written


def test_parts_of_archives_in_order(tmp_path):
    for name in ("a.tar.gz.aa", "a.tar.gz.ab", "b.tar", "c.tgz", "d.tar.gz.part02", "d.tar.gz.part01", "e.mp4"):
        (tmp_path / name).touch()
    assert [[path.name for path in parts] for parts in find_archives(tmp_path)] == [
        ["a.tar.gz.aa", "a.tar.gz.ab"],
        ["b.tar"],
        ["c.tgz"],
        ["d.tar.gz.part01", "d.tar.gz.part02"],
    ]
