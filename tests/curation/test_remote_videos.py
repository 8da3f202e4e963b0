"""Raw videos and tar shards behind URLs."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest

from icve.cli.curate import main
from icve.curation.importers.importing import import_set
from icve.curation.raw_videos import find_inputs
from icve.data.manifest import ManifestError, read_manifest, resolve_path
from icve.data.media.video import probe, write_video
from icve.runtime.storage import remote_path
from tests.s3_server import upload


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """A folder of videos: one with noise that moves, its copy, one that is too short, and what is no video."""
    folder = tmp_path_factory.mktemp("moving")
    rng = np.random.default_rng(0)
    field = np.repeat(np.repeat(rng.integers(0, 255, (20, 60, 3), dtype=np.uint8), 8, 0), 8, 1)
    frames = np.stack([field[:160, 3 * k : 3 * k + 240] for k in range(60)])
    write_video(folder / "a" / "long.mp4", frames, fps=24)
    shutil.copyfile(folder / "a" / "long.mp4", folder / "copy.mp4")
    write_video(folder / "short.mp4", frames[:5], fps=24)
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_curation_of_a_bucket_gives_the_rows_of_the_same_folder(moving, tmp_path, repository, s3):
    pipeline = str(repository / "pipelines" / "clip_pairs_demo.yaml")
    url = upload(moving, "s3://raw/videos")
    for name, source in (("here", str(moving)), ("there", url)):
        main([pipeline, "--input", source, "--output", str(tmp_path / name), "--workers", "1"])
    here, there = (read_manifest(tmp_path / name / "manifest") for name in ("here", "there"))
    assert [dict(row) for row in there] == [dict(row) for row in here]
    assert here
    assert str(there.root) == url
    assert probe(resolve_path(there.root, there[0]["source_path"])).frames == 60


def test_a_bucket_is_listed_once_and_its_videos_told_by_name(moving, s3):
    url = upload(moving, "s3://raw/listed")
    s3.reset()
    inputs = find_inputs(url)
    state = inputs.state(inputs.names)
    assert len(s3.log) <= 2
    assert inputs.names == ["a/long.mp4", "copy.mp4", "short.mp4"]
    assert inputs.left_out == {".hidden.mp4": "hidden file", "notes.txt": "no suffix of a video"}
    (moving / "short.mp4").touch()
    assert find_inputs(url).state(inputs.names) == state
    with pytest.raises(FileNotFoundError, match="There is no s3://raw/nothing"):
        find_inputs("s3://raw/nothing")


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_server_that_stops_answering_ends_curation_and_loses_nothing(
    moving, tmp_path, repository, s3, capsys, monkeypatch
):
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "2")
    url = upload(moving, "s3://raw/dead")
    pipeline = tmp_path / "probe.yaml"
    pipeline.write_text("root: input\nstages:\n  - class_path: icve.curation.probe.Probe\n")
    arguments = [str(pipeline), "--input", url, "--output", str(tmp_path / "out"), "--workers", "1"]
    inputs = find_inputs(url)
    s3.failing = "503"
    remote_path.forget()
    monkeypatch.setattr("icve.curation.raw_videos.find_inputs", lambda *_: inputs)
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert "could not be had in 2 attempts" in said
    assert "the same command goes on from there" in said
    s3.failing = None
    assert main(arguments) in (0, 3)
    assert "unreadable" not in capsys.readouterr().out


def shard(file, samples):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in samples.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def shards(moving, tmp_path):
    clip = (moving / "short.mp4").read_bytes()
    other = (moving / "a" / "long.mp4").read_bytes()
    text = json.dumps({"instruction": "make it red", "edit_type": "recolour", "score": 3}).encode()
    folder = tmp_path / "shards"
    shard(folder / "000.tar", {"0.source.mp4": clip, "0.target.mp4": other, "0.json": text})
    shard(
        folder / "001.tar",
        {"b/1.source.mp4": clip, "b/1.target.mp4": other, "b/1.txt": b"remove it\n"}
        | {"2.source.mp4": clip, "2.txt": b"no target"}
        | {"3.source.mp4": clip, "3.target.mp4": b"no video", "3.txt": b"broken"}
        | {"4.source.mp4": clip, "4.target.mp4": other, "4.json": b"[1]"},
    )
    return folder


@pytest.mark.parametrize("remote", [False, True])
def test_shards_become_a_manifest_and_stay_packed(shards, tmp_path, s3, remote):
    source = upload(shards, "s3://raw/shards") if remote else shards
    report = import_set("webdataset", source, tmp_path / "out")
    assert (report.read, report.kept) == (5, 2)
    assert report.rejected == {"no target_path": 1, "unreadable video": 1, "malformed record": 1}
    manifest = read_manifest(report.manifest)
    assert str(manifest.root) == str(source)
    rows = {row["instruction"]: row for row in manifest}
    assert rows["make it red"]["source_path"] == "000.tar/0.source.mp4"
    assert rows["make it red"]["score"] == "3"
    assert rows["remove it"]["target_path"] == "001.tar/b/1.target.mp4"
    assert (rows["remove it"]["source_frames"], rows["remove it"]["width"]) == (5, 240)
    assert sorted(file.name for file in shards.rglob("*")) == ["000.tar", "001.tar"]


def test_a_damaged_shard_is_named(shards, tmp_path):
    (shards / "000.tar").write_bytes((shards / "000.tar").read_bytes()[:2000])
    with pytest.raises(ManifestError, match=r"000.tar cannot be read \(000.tar is (damaged|truncated)"):
        import_set("webdataset", shards, tmp_path / "out")
