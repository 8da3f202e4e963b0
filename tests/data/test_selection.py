"""Many rows are sorted into buckets at once, as they would be one by one."""

import json
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest

from icve.data import selection
from icve.data.buckets import Bucket, choose_bucket, choose_buckets
from icve.data.manifest import ManifestError, read_manifest
from icve.data.manifest_table import Manifest
from icve.data.selection import select

BUCKETS = [Bucket(*shape) for shape in ((480, 768, 77), (768, 480, 77), (480, 768, 33), (512, 512, 33), (240, 384, 33))]


@pytest.mark.parametrize("seed", range(5))
def test_buckets_of_many_clips_are_those_of_single_ones(seed):
    draw = random.Random(seed)
    sides = [1, 2, 240, 480, 512, 720, 768, 1080, 1920, 2**26, 2**40, 2**53]
    clips = [(draw.choice(sides), draw.choice(sides), draw.choice([0, 1, 32, 33, 76, 77, 500])) for _ in range(400)]
    clips += [tuple(draw.randint(1, 2000) for _ in range(3)) for _ in range(400)]
    buckets = [*draw.sample(BUCKETS, 4), draw.choice(BUCKETS)]  # one may be there twice
    chosen = choose_buckets(buckets, *np.array(clips).T)
    expected = [choose_bucket(buckets, *clip) for clip in clips]
    assert [None if bucket < 0 else bucket for bucket in chosen.tolist()] == expected
    assert len(set(expected)) > 2


def expected_bucket(row, fps):
    """What becomes of a row whose columns say all: its bucket or why there is none."""
    for name in ("source_path", "target_path", "instruction"):
        if not (row.get(name) or "").strip():
            return f"it has no {name}."
    lengths = [row[name] for name in ("source_frames", "target_frames") if row.get(name)]
    if row.get("frames") is not None:
        lengths.append(row["frames"] - (row.get("source_start") or 0))
    frames = max(0, min(lengths))
    if fps is not None and frames > 1:  # never more than there are
        frames = min(frames, int((frames - 1) / row["fps"] * fps + 1e-3) + 1)
    bucket = choose_bucket(BUCKETS, row["width"], row["height"], frames)
    return f"it has {frames} frames, the shortest bucket has 33." if bucket is None else bucket


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("fps", [None, 24.0, 7.3])
def test_rows_go_where_each_alone_would(tmp_path, seed, fps):
    draw = random.Random(seed)
    choices = {
        "source_path": ["a.mp4"] * 9 + [None],
        "target_path": ["b.mp4"] * 9 + [None],
        "instruction": ["make it red"] * 9 + [None, "", " \u2028\x1c", "做"],
        "width": [480, 640, 1280, 1920],
        "height": [480, 720, 1080],
        "fps": [8, 23.976, 24, 29.97, 1e-6, 60],
        "frames": [33, 60, 77, 200, 31, 1, 2**53],
        "source_start": [None, 0, 10, 300],
        "source_frames": [None, 0, 20, 77, 90],
        "target_frames": [None, 0, 40, 77],
        "mask_path": [None] * 20 + ["m.npz"],
    }
    rows = [{name: draw.choice(values) for name, values in choices.items()} | {"id": str(n)} for n in range(200)]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps(row) for row in [*rows, {"source_path": "../a"}]))
    manifest = read_manifest(tmp_path / "m.jsonl", partial=True)
    found = select(manifest, BUCKETS, fps)
    ends = {row["id"]: expected_bucket(row, fps) for row in rows}
    assert {pair.id: pair.bucket for pair in found.pairs} == {n: b for n, b in ends.items() if not isinstance(b, str)}
    reasons = [(name, reason) for name, reason in ends.items() if isinstance(reason, str)]
    assert found.dropped == [(manifest.rejected[0].id, manifest.rejected[0].reason), *reasons]
    assert [found.dropped[at] for at in range(len(found.dropped))] == list(found.dropped)
    assert found.rows == len(found.pairs) + len(found.dropped) == 201
    assert found.has_masks
    assert [found.pairs[at] for at in range(len(found.pairs))] == list(found.pairs) == found.pairs[:]
    for bucket, members in enumerate(found.members(len(BUCKETS))):
        assert [pair.bucket == bucket for pair in found.pairs] == np.isin(range(len(found.pairs)), members).tolist()
    assert list(pickle.loads(pickle.dumps(found)).pairs) == list(found.pairs)


def bare(count):
    row = {"target_path": "b.mp4", "instruction": "do it"}
    return Manifest([row | {"id": str(n), "source_path": f"{n}.mp4"} for n in range(count)], "root")


def test_processes_share_what_they_probe(monkeypatch):
    probed = []

    def probe(path):
        probed.append(path)
        number = int(path)
        if number == 4:
            raise selection.VideoError(path, "it is damaged.")
        return SimpleNamespace(width=768, height=480, frames=30 + number, fps=24.0)

    monkeypatch.setattr(selection, "probe", probe)
    monkeypatch.setattr(selection, "resolve_path", lambda root, path: path.removesuffix(".mp4"))
    alone = select(bare(11), BUCKETS)
    assert len(probed) == 11
    told = []
    for rank in (0, 1, 2):  # what each of three gives
        monkeypatch.setattr(selection, "process_place", lambda rank=rank: (rank, 3))
        monkeypatch.setattr(selection, "gather", lambda found: told.append(found) or [[*found, "none"]] * 3)
        probed.clear()
        select(bare(11), BUCKETS, together=True)
        assert len(probed) <= 4
    monkeypatch.setattr(selection, "gather", lambda found: told)
    shared = select(bare(11), BUCKETS, together=True)
    assert list(shared.pairs) == list(alone.pairs)
    assert shared.dropped == list(alone.dropped)


def test_too_many_rows_that_say_nothing_are_refused(monkeypatch):
    monkeypatch.setattr(selection, "MOST_PROBED", 5)
    with pytest.raises(ManifestError, match=r"6 rows of .* do not say width, height, frames, .*--complete FOLDER"):
        select(bare(6), BUCKETS)
