import numpy as np
import pytest

from icve.curation.edit_pairs.offline_edits import KINDS, OfflineEdits
from icve.curation.edit_pairs.style_filters import STYLES
from icve.curation.stage import Rejected, Workspace
from icve.data.manifest import content_id, read_manifest, write_manifest
from icve.data.masks import load_mask, save_mask
from icve.data.media.video import read_frames, write_video
from icve.data.paired_edits import PairedEditsDataModule
from tests.curation.edit_pairs.disc_clips import disc_clip


@pytest.fixture
def work(tmp_path):
    return Workspace(tmp_path / "in", tmp_path, tmp_path)


def row_of(work, clip, mask=None, key="k0", **columns):
    write_video(work.output / "sources" / f"{key}.mp4", clip, 12, crf=10)
    height, width = clip.shape[1:3]
    row = {"key": key, "source_path": f"sources/{key}.mp4", "source_start": 0, "source_frames": len(clip)}
    row |= {"width": width, "height": height, "fps": 12.0, "note": "kept", "mask_path": None}
    if mask is not None:
        (work.output / "masks").mkdir(exist_ok=True)
        save_mask(work.output / "masks" / f"{key}.npz", mask)
        thing = {"object": "the moving red object", "object_colour": "red", "object_kind": "moving"}
        row |= {"mask_path": f"masks/{key}.npz", "mask_leftover": 0.0, **thing}
    return {**row, **columns}


@pytest.fixture
def moving(work):
    clip, mask, empty = disc_clip(step=6.0, start=30)
    return row_of(work, clip, mask), mask, empty


def frames_of(work, row, side):
    return read_frames(work.file(row, f"{side}_path")).astype(float)


def test_a_moving_thing_gives_every_kind_of_edit(work, moving):
    row, mask, empty = moving
    (rows,) = OfflineEdits(styles=3)([row], work)
    made = {(edit["edit"].split()[0], edit["edit_type"]) for edit in rows if edit["edit_type"] != "style"}
    assert {("remove", "remove"), ("remove", "add"), ("recolour", "recolour"), ("background", "background")} <= made
    assert sum(edit["edit_type"] == "style" for edit in rows) == 3
    for edit in rows:
        assert edit["note"] == "kept"
        assert "sources/k0.mp4" in (edit["source_path"], edit["target_path"])
        assert edit["instruction"].endswith(".")
        source, target = (frames_of(work, edit, side) for side in ("source", "target"))
        assert source.shape == target.shape == (13, 96, 160, 3)
        difference = np.abs(source - target).mean(-1)
        if edit["edit_type"] == "style":
            assert edit["mask_path"] is None
            assert difference.mean() > 4
            continue
        changes = load_mask(work.file(edit, "mask_path"))
        assert changes.shape == mask.shape
        assert difference[changes].mean() == pytest.approx(edit["changed"], rel=0.2)
        assert difference[~changes].mean() < 3  # two encodings apart
    removed = next(edit for edit in rows if edit["edit_type"] == "remove" and edit["edit"] == "remove")
    assert np.abs(frames_of(work, removed, "target") - empty)[mask].mean() < 12
    added = next(edit for edit in rows if edit["edit_type"] == "add" and edit["edit"] == "remove")
    assert (added["source_path"], added["target_path"]) == (removed["target_path"], removed["source_path"])
    assert "a moving red object" in added["instruction"]


def test_a_copy_is_an_add_and_backwards_a_remove(work):
    clip, mask, _ = disc_clip(step=2.0, start=30)
    (rows,) = OfflineEdits(kinds=["copy"])([row_of(work, clip, mask)], work)
    there, back = rows
    assert (there["edit_type"], back["edit_type"]) == ("add", "remove")
    assert (there["source_path"], there["target_path"]) == (back["target_path"], back["source_path"])
    assert "right" in there["instruction"]
    assert "right" in back["instruction"]


def test_doubtful_masks_give_no_edits_that_would_show_it(work):
    clip, mask, _ = disc_clip(step=2.0, start=30)
    for doubt in ({"mask_leftover": 0.5}, {"object_kind": "coloured"}):
        (rows,) = OfflineEdits()([row_of(work, clip, mask, **doubt)], work)
        assert {edit["edit_type"] for edit in rows} <= {"style", "recolour"}
        assert "copy: " in rows[0]["edits_refused"]
        assert "background: " in rows[0]["edits_refused"]


def test_clips_without_a_thing_are_restyled_or_recoloured(work):
    _, _, empty = disc_clip(frames=5)
    (rows,) = OfflineEdits(styles=2)([row_of(work, empty)], work)
    assert [edit["edit_type"] for edit in rows] == ["style", "style"]
    assert len({edit["edit"] for edit in rows}) == 2
    assert "remove: no clear object" in rows[0]["edits_refused"]
    blue = empty.copy()
    blue[:, 20:80, 20:90] = (30, 60, 210)
    (rows,) = OfflineEdits(kinds=["recolour"])([row_of(work, blue, key="k1")], work)
    assert [edit["edit_type"] for edit in rows] == ["recolour"]
    assert "everything blue" in rows[0]["instruction"]


def test_edits_that_change_too_little_are_rejected_with_the_reason(work):
    _, _, empty = disc_clip(frames=5)
    (outcome,) = OfflineEdits(min_change=250.0)([row_of(work, empty)], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "no edit without faults"
    assert "it changes by" in outcome.detail
    assert not (work.output / "targets").exists()


def test_results_depend_on_key_and_seed_alone(work, moving):
    row, _, _ = moving

    def made(seed, kinds=None):
        rows = OfflineEdits(seed=seed, kinds=kinds)([row], work)[0]
        return [(edit["edit"], edit["instruction"], work.file(edit, "target_path").read_bytes()) for edit in rows]

    first = made(0)
    assert made(0) == first
    assert made(0, ["style"]) == first[-2:]
    assert made(1, ["style"]) != first[-2:]
    assert set(STYLES) > {edit for edit, _, _ in first[-2:]}


@pytest.mark.parametrize("wrong", [{"kinds": ["melt"]}, {"styles": 0}, {"styles": 99}, {"max_unseen": 2.0}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="OfflineEdits"):
        OfflineEdits(**wrong)
    assert len(KINDS) == 5


def test_the_rows_train(work, moving):
    row, _, _ = moving
    (rows,) = OfflineEdits(styles=1)([row], work)
    rows = [{**{name: edit[name] for name in edit if name != "key"}, "id": content_id(edit)} for edit in rows]
    write_manifest(rows, work.output / "manifest", root=work.output)
    assert len(read_manifest(work.output / "manifest")) == len(rows)
    module = PairedEditsDataModule(str(work.output / "manifest"), [[96, 160, 13], [96, 160, 9]], batch_size=len(rows))
    module.setup("fit")
    assert not module.dropped
    batch = next(iter(module.train_dataloader()))
    assert batch["source"].shape == batch["target"].shape == (len(rows), 3, 13, 96, 160)
    assert sorted(batch["id"]) == sorted(edit["id"] for edit in rows)
    whole = {edit["id"] for edit in rows if edit["mask_path"] is None}
    assert whole
    for name, mask in zip(batch["id"], batch["mask"], strict=True):
        assert bool(mask.all()) == (name in whole)
