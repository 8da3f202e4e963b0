"""`icve inspect-data` shows exactly what training reads."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icve.cli.main import main
from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import write_video
from icve.data.media.video_index import forget
from icve.data.pair_dataset import PairDataset
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.unpaired_clips import UnpairedClipsDataModule
from icve.preflight.seen_rows import choose, inspect_rows
from icve.preflight.seen_table import summary
from tests.data.conftest import numbered
from tests.training.conftest import TINY_YAML

BUCKETS = [[48, 64, 5], [64, 48, 5]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pairs of 12 frames at 8 per second: four wide, one upright, one of another size that has to be cropped."""
    folder = tmp_path_factory.mktemp("inspected")
    sizes = [(48, 64)] * 4 + [(64, 48), (96, 160)]
    rows = []
    for number, (height, width) in enumerate(sizes):
        for role, first in (("source", number), ("target", number + 20)):
            write_video(folder / f"{role}{number}.mp4", numbered(12, height, width, first), 8.0)
        row = {"id": f"row{number}", "instruction": f"make it <b>{number}</b> & more"}
        rows.append(row | {f"{role}_path": f"{role}{number}.mp4" for role in ("source", "target")})
    write_manifest(rows, folder / "manifest.jsonl")
    return folder


@pytest.fixture
def broken(folder, tmp_path):
    """The same with a missing target, a damaged source, a short clip and a row without an instruction."""
    shutil.copytree(folder, tmp_path / "broken")
    (tmp_path / "broken" / "target1.mp4").unlink()
    file = tmp_path / "broken" / "source2.mp4"
    write_video(file, np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8), 8.0)
    content = bytearray(file.read_bytes())
    begin = content.find(b"mdat")
    end = begin - 4 + int.from_bytes(content[begin - 4 : begin])
    middle = (begin + end) // 2
    content[middle:end] = b"\xff" * (end - middle)  # the index and the first frames stay whole
    file.write_bytes(bytes(content))
    rows = list(read_manifest(folder / "manifest.jsonl"))
    rows[3] |= {"source_start": 10}
    rows[4] |= {"instruction": ""}
    write_manifest(rows, tmp_path / "broken" / "manifest.jsonl")
    return tmp_path / "broken"


def module(folder, kind=PairedEditsDataModule, **options):
    return kind(str(folder / "manifest.jsonl"), **{"buckets": BUCKETS, "batch_size": 1, "fps": 4.0, **options})


@pytest.mark.parametrize("kind", [PairedEditsDataModule, UnpairedClipsDataModule])
def test_what_is_shown_is_what_training_loads(folder, kind):
    data = module(folder, kind)
    data.setup("fit")
    dataset = PairDataset(data.train, data.buckets, data.read, data.choice)
    inspection = inspect_rows(module(folder, kind))
    assert len(inspection.rows) == len(dataset) == 6
    for index, row in enumerate(inspection.rows):
        sample, (_, shown) = dataset._load(index), inspection.read(row)
        assert sample["id"] == row.pair.id
        for role in ("source", "target"):
            assert np.array_equal(sample[role].numpy().transpose(1, 2, 3, 0), shown[role])


def test_frames_rate_and_crop_are_told(folder):
    inspection = inspect_rows(module(folder))
    row, cropped = inspection.rows[0], inspection.rows[5]
    assert row.source.indices.tolist() == [0, 2, 4, 6, 8]  # every second frame of 8 per second
    assert row.source.rate == pytest.approx(4.0)
    assert not row.source.slow
    assert row.source.cut_off == 0
    greys = [(float(frame.mean()) - 16) / 4 for frame in inspection.read(row)[1]["source"]]
    assert greys == pytest.approx([0, 2, 4, 6, 8], abs=0.5)
    assert cropped.bucket == (48, 64, 5)
    assert cropped.source.scaled == (48, 80)
    assert cropped.source.cut_off == pytest.approx(0.2)


def test_slow_clips_are_counted_and_shown(folder):
    inspection = inspect_rows(module(folder, fps=16.0))
    assert inspection.selection.slow == len(inspection.rows) == 6
    clip = inspection.rows[0].source
    assert clip.indices.tolist() == [0, 1, 2, 3, 4]
    assert clip.slow
    assert "8, slow" in summary(inspection)
    assert "6 rows are slower than 16 fps, and taken frame by frame (slow_clips: own_rate)." in summary(inspection)
    dropped = inspect_rows(module(folder, fps=16.0, slow_clips="drop"))
    assert not dropped.rows
    assert dropped.selection.slow == len(dropped.dropped) == 6
    assert "6 rows are slower than 16 fps, and left out (slow_clips: drop)." in summary(dropped)


def test_masks_and_reference_pictures_are_counted_and_missing_ones_named(folder, tmp_path):
    rows = [dict(row) for row in read_manifest(folder / "manifest.jsonl")]
    save_mask(tmp_path / "m.npz", np.ones((12, 48, 64), dtype=bool))
    Image.new("RGB", (8, 8)).save(tmp_path / "r.png")
    for name in ("mask_path", "reference_path"):
        for row in rows[:3]:
            row[name] = str(tmp_path / ("m.npz" if name == "mask_path" else "r.png"))
    rows[1]["mask_path"], rows[2]["reference_path"] = (str(tmp_path / name) for name in ("none.npz", "none.png"))
    for row in rows:
        row |= {f"{role}_path": str(folder / row[f"{role}_path"]) for role in ("source", "target")}
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"root": str(Path(os.path.commonpath([folder, tmp_path])))}
    inspection = inspect_rows(module(tmp_path, **options))
    assert list(dict(inspection.dropped)) == ["row1"]
    assert "There is no mask file" in inspection.dropped[0][1]
    assert "2 of them have a mask, 2 a reference picture (not read: data.init_args.references is off)." in summary(
        inspection
    )
    inspection = inspect_rows(module(tmp_path, references=True, **options))
    assert list(dict(inspection.dropped)) == ["row1", "row2"]
    assert "there is no such picture" in inspection.dropped[1][1]
    assert "1 of them have a mask, 1 a reference picture." in summary(inspection)


def test_rows_left_out_have_reasons_and_counts_add_up(broken):
    inspection = inspect_rows(module(broken))
    reasons = dict(inspection.dropped)
    assert len(inspection.rows) + len(inspection.dropped) == inspection.selection.rows == 6
    assert set(reasons) == {"row1", "row3", "row4"}
    assert "target1.mp4" in reasons["row1"]
    assert "shortest bucket has 5" in reasons["row3"]
    assert reasons["row4"] == "it has no instruction."
    decoded = dict(inspect_rows(module(broken), decode=True).dropped)
    assert set(decoded) == {*reasons, "row2"}  # damage inside of a file is found by decoding it
    assert "does not decode" in decoded["row2"] or "do not decode" in decoded["row2"]
    damaged = next(row for row in inspection.rows if row.pair.id == "row2")
    assert inspection.read(damaged) is None
    assert "row2" in dict(inspection.dropped)
    assert len(inspection.rows) + len(inspection.dropped) == 6


def test_rows_with_bad_cells_are_left_out_alone(folder, capsys):
    rows = list(read_manifest(folder / "manifest.jsonl"))
    rows[1] |= {"instruction": float("nan")}
    rows[2] |= {"instruction": ["a", "b"]}
    rows[3] |= {"source_start": -1}
    lines = [*map(json.dumps, rows), '{"cut']
    (folder / "bad.jsonl").write_text("\n".join(lines))
    words = ["--buckets", "48x64x5", "64x48x5"]
    assert main(["inspect-data", str(folder / "bad.jsonl"), *words]) == 3
    out = capsys.readouterr().out
    assert "3 rows can be used, at their files' own frames; 4 of 7 are left out." in out
    for name, reason in (("row1", "instruction in row 2"), ("row2", "instruction"), ("row3", "source_start in row 4")):
        assert f"left out: {name}: {reason}" in out
    assert "Line 7 of" in out


def test_rows_are_chosen_from_every_bucket_and_limited(folder):
    inspection = inspect_rows(module(folder))
    assert [row.pair.id for row in choose(inspection, 3)] == ["row0", "row4", "row1"]
    assert len(choose(inspection, 99)) == 6
    assert [row.pair.id for row in inspect_rows(module(folder), limit=2).rows] == ["row0", "row5"]


def inspect(folder, *arguments):
    return main(["inspect-data", str(folder / "manifest.jsonl"), *map(str, arguments)])


def test_the_command_prints_rows_and_writes_pictures(folder, tmp_path, capsys):
    output = tmp_path / "out"
    words = ["--buckets", "48x64x5", "64x48x5", "--fps", 4, "--output", output, "--count", 4]
    assert inspect(folder, *words) == 0
    out = capsys.readouterr().out
    assert re.search(r"row0 +48x64x5 +source +48x64, 8 fps +5 of 0–8 +0.00–1.00 +4 +48x64, 0%", out)
    assert re.search(r"row5 +48x64x5 +source +96x160, 8 fps .* 48x80, 20%", out)
    assert "     5 rows in 48x64x5\n     1 rows in 64x48x5" in out
    assert "6 rows can be used, at 4 fps; 0 of 6 are left out." in out
    assert sorted(path.name for path in output.iterdir()) == ["pairs.html", "pairs.png"]
    page = (output / "pairs.html").read_text()
    assert page.count("<article") == 4
    assert "make it &lt;b&gt;0&lt;/b&gt; &amp; more" in page
    assert "make it <b>" not in page
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)[^\"']*", page)  # nothing is loaded from elsewhere
    assert "0, 2, 4, 6, 8" in page
    sheet = np.asarray(Image.open(output / "pairs.png"))
    # The first row of frames: grey values that say which frame they are.
    greys = [(float(sheet[60, column * 204 + 100].mean()) - 16) / 4 for column in range(5)]
    assert greys == pytest.approx([0, 2, 4, 6, 8], abs=0.6)


def test_a_configuration_says_how_it_is_read(folder, tmp_path, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY_YAML.format(run=tmp_path / "run", manifest="not-there.jsonl"))
    assert inspect(folder, "-c", config, "--data.init_args.buckets", "[[32, 32, 9]]") == 0
    out = capsys.readouterr().out
    assert "6 rows in 32x32x9" in out
    assert "at their files' own frames" in out
    assert not (tmp_path / "run").exists()


def test_rows_left_out_are_printed_and_give_status_3(broken, capsys):
    assert inspect(broken, "--buckets", "48x64x5", "64x48x5") == 3
    out = capsys.readouterr().out
    assert "left out: row4: it has no instruction." in out
    assert "2 of 6" not in out
    assert inspect(broken, "--buckets", "48x64x101") == 3
    assert "0 rows can be used, at their files' own frames; 6 of 6 are left out." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --buckets"),
        (["--buckets", "48x64"], "'48x64' is no bucket"),
        (["--buckets", "48x64x5", "--columns", "source"], "--columns takes pairs like video=source_path, not 'source'"),
        (["--buckets", "48x64x5", "--count", "0"], "must be at least 1"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_mistakes_are_one_sentence(folder, arguments, told, capsys):
    assert inspect(folder, *arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert told in line


def test_a_manifest_that_is_not_there(tmp_path, capsys):
    assert inspect(tmp_path, "--buckets", "48x64x5") == 2
    assert "There is no manifest" in capsys.readouterr().err


def test_an_index_of_the_videos_is_kept(folder, capsys, tmp_path):
    manifest = shutil.copytree(folder, tmp_path / "set") / "manifest.jsonl"
    arguments = [
        "inspect-data",
        str(manifest),
        "--buckets",
        "48x64x5",
        "64x48x5",
        "--fps",
        "16",
        "--slow-clips",
        "drop",
    ]
    forget()
    assert main(arguments) == 3
    assert "left out (slow_clips: drop)" in capsys.readouterr().out
    assert not (tmp_path / "set" / "video_index.arrow").exists()
    assert main([*arguments[:-4], "--index"]) == 0
    assert str(tmp_path / "set" / "video_index.arrow") in capsys.readouterr().out
    assert (tmp_path / "set" / "video_index.arrow").exists()
    forget()
    (tmp_path / "set").chmod(0o555)
    try:
        assert main([*arguments[:-4], "--index"]) == 2
        assert "video_index.arrow cannot be written: make its folder writable." in capsys.readouterr().err
    finally:
        (tmp_path / "set").chmod(0o755)
        forget()


def test_a_manifest_is_completed_as_the_error_says(folder, tmp_path, monkeypatch, capsys):
    rows = list(read_manifest(folder / "manifest.jsonl"))
    bare = [{name: row[name] for name in ("id", "source_path", "target_path", "instruction")} for row in rows]
    write_manifest(bare, folder / "bare.jsonl")
    monkeypatch.setattr("icve.data.selection.MOST_PROBED", 3)
    kept = tmp_path / "with space"
    options = {"buckets": [[48, 64, 9]], "batch_size": 1, "fps": 8.0}
    with pytest.raises(
        ValueError, match=rf"{len(rows)} rows of .* do not say width, height, frames and fps"
    ) as refused:
        PairedEditsDataModule(str(folder / "bare.jsonl"), **options).setup("fit")
    words = shlex.split(str(refused.value).rpartition(": ")[2])
    assert words[:2] == ["icve", "inspect-data"]
    command = [*words[1:-1], str(kept), "--workers", "1"]
    status = main(command)
    completed = read_manifest(kept)
    assert [row["id"] for row in completed] == [row["id"] for row in rows]
    assert completed.root.resolve() == folder.resolve()
    assert status == (3 if any(row["width"] is None for row in completed) else 0)
    module = PairedEditsDataModule(str(kept), **options)
    module.setup("fit")
    assert len(module.train.pairs) + len(module.train.dropped) == len(rows)
    # Again: nothing is looked into; another manifest is not mixed in.
    monkeypatch.setattr("icve.preflight.completing.probe", None)
    main(command)
    write_manifest(bare[1:], folder / "bare.jsonl")
    assert main(command) == 2
    assert "name another folder" in capsys.readouterr().err
