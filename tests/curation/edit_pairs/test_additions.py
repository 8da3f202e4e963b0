import pytest

from icve.curation.edit_pairs.additions import Additions
from tests.curation.edit_pairs.scripted import workspace

ROW = {
    "source_path": "sources/a.mp4",
    "source_start": 3,
    "source_frames": 9,
    "target_path": "targets/a.mp4",
    "target_start": 0,
    "target_frames": 9,
    "mask_path": "masks/a.npz",
}


def rows(count: int, edit_type: str) -> list[dict]:
    return [{"key": f"{edit_type}{number}", "edit_type": edit_type, **ROW} for number in range(count)]


def test_a_removal_read_backwards_is_an_addition(tmp_path):
    (turned,) = Additions(share=1.0)(rows(1, "remove"), workspace(tmp_path))
    assert turned == {
        "key": "remove0",
        "source_path": "targets/a.mp4",
        "source_start": 0,
        "source_frames": 9,
        "target_path": "sources/a.mp4",
        "target_start": 3,
        "target_frames": 9,
        "mask_path": "masks/a.npz",
        "edit_type": "add",
        "generated": "source",
    }


def test_other_edits_pass_as_they_are(tmp_path):
    others = rows(3, "replace") + rows(3, "recolour")
    assert Additions(share=1.0)(others, workspace(tmp_path)) == others
    removals = rows(5, "remove")
    assert Additions(share=0.0)(removals, workspace(tmp_path)) == removals


def test_the_share_is_drawn_by_key_and_seed(tmp_path):
    work, removals = workspace(tmp_path), rows(400, "remove")
    turned = Additions(share=0.3)(removals, work)
    share = sum(row["edit_type"] == "add" for row in turned) / 400
    assert share == pytest.approx(0.3, abs=0.07)
    assert turned[::-1] == Additions(share=0.3)(removals[::-1], work)
    assert turned != Additions(share=0.3, seed=1)(removals, work)


def test_a_share_is_a_share():
    with pytest.raises(ValueError, match="share of additions"):
        Additions(share=50)
