import hashlib
import json

import numpy as np
import pytest

from icve.data.manifest import read_manifest
from icve.data.masks import load_mask
from icve.data.media.video import probe, read_frames
from icve.synthetic.pair_files import synthesize_pairs
from icve.synthetic.paired_clips import TURNS, make_pair


def digests(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix != ".parquet"
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return folder, synthesize_pairs(folder, 6, split="test", seed=4, frames=5)


def test_rows_describe_the_files(written):
    folder, manifest = written
    rows = read_manifest(manifest)
    assert manifest == folder / "manifest.parquet"
    assert len(rows) == len({row["id"] for row in rows}) == 6
    for index, row in enumerate(rows):
        pair = make_pair("test", 4, index, frames=5)
        assert row["instruction"] == pair.instruction
        assert row["edit_type"] == pair.edit.edit_type
        assert row["scene_seed"] == pair.scene_seed
        assert (row["width"], row["height"], row["fps"], row["source_frames"]) == (64, 64, 8.0, 5)
        assert row["changed"] == pytest.approx(pair.mask.mean())
        np.testing.assert_array_equal(load_mask(folder / row["mask_path"]), pair.mask)
        info = probe(folder / row["source_path"])
        assert (info.width, info.height, info.frames, info.fps) == (64, 64, 5, 8.0)
        shown = np.asarray(read_frames(folder / row["target_path"]))
        assert np.mean((shown / 255.0 - pair.target / 255.0) ** 2) < 10**-2.6
        assert len(row["distractor_paths"]) == len(row["distractor_instructions"]) == 4
        assert all((folder / path).is_file() for path in row["distractor_paths"])


def test_training_rows_have_no_distractors(tmp_path):
    row = read_manifest(synthesize_pairs(tmp_path, 1, split="train", frames=1))[0]
    assert "distractor_paths" not in row
    assert not (tmp_path / "distractors").exists()
    json.dumps(row)


def test_more_items_do_not_change_earlier_ones_and_a_rerun_keeps_files(written, tmp_path):
    folder, _ = written
    synthesize_pairs(tmp_path, 2, split="test", seed=4, frames=5)
    few, many = digests(tmp_path), digests(folder)
    assert few.items() <= many.items()
    times = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.mp4")}
    lost = next(iter(times))
    lost.unlink()
    synthesize_pairs(tmp_path, 2, split="test", seed=4, frames=5)
    assert digests(tmp_path) == few
    assert all(file == lost or file.stat().st_mtime_ns == time for file, time in times.items())


def test_sizes_take_turns_with_every_edit_type(tmp_path):
    turn = len(TURNS["train"])
    rows = read_manifest(synthesize_pairs(tmp_path, 3 * turn, split="train", sizes=[(32, 32), (32, 48)], frames=1))
    assert [(row["height"], row["width"]) for row in rows] == [(32, 32)] * turn + [(32, 48)] * turn + [(32, 32)] * turn
    assert len({row["edit_type"] for row in rows[turn : 2 * turn]}) == 6
    assert read_frames(tmp_path / rows[turn]["source_path"]).shape == (1, 32, 48, 3)


@pytest.mark.multiprocess
@pytest.mark.timeout(60)
def test_workers_change_nothing(written, tmp_path):
    folder, manifest = written
    other = synthesize_pairs(tmp_path, 6, split="test", seed=4, frames=5, workers=2)
    assert digests(tmp_path) == digests(folder)
    assert list(read_manifest(other)) == list(read_manifest(manifest))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"split": "validation"}, "split must be train, test, .* or gradual"),
        ({"sizes": [(60, 64)]}, "multiples of 16"),
        ({"sizes": [(64, 64), (64, 256)]}, "twice the other"),
        ({"frames": 0}, "at least 1 frame"),
        ({"fps": 0.0}, "frame rate"),
    ],
)
def test_impossible_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        synthesize_pairs(tmp_path / "out", **{"count": 1, **arguments})
    assert not (tmp_path / "out").exists()
