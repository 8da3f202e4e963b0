import os
from pathlib import Path

import pytest

from icve.curation.edit_pairs import merge_styles as styles
from icve.curation.edit_pairs.merge_styles import MergeStyles, link
from icve.data.manifest import ManifestError, write_manifest
from icve.data.media.video import read_frames
from tests.curation.edit_pairs.scripted import moving_square, workspace, write_video

OWN = [{"key": "a", "edit_type": "remove"}, {"key": "b", "edit_type": "add"}]


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path / "run")


@pytest.fixture
def public(tmp_path) -> Path:
    """A public set with four style pairs, one of another kind and its own names of columns."""
    folder = tmp_path / "public"
    rows = []
    for number in range(5):
        for side in ("before", "after"):
            write_video(folder / side / f"{number}.mp4", moving_square(frames=3, speed=number)[0], 8)
        row = {"old": f"before/{number}.mp4", "new": f"after/{number}.mp4", "instruction": f"Make it style {number}."}
        rows.append(row | {"edit_type": "remove" if number == 4 else "style", "score": "high", "fps": 8.0})
    write_manifest(rows, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


COLUMNS = {"old": "source_path", "new": "target_path"}


def test_style_edits_join_the_first_row_and_the_others_stay(work, public):
    first, second = MergeStyles(str(public), COLUMNS)(OWN, work)
    assert (first[0], second) == (OWN[0], OWN[1])
    added = first[1:]
    assert {row["instruction"] for row in added} == {f"Make it style {number}." for number in range(4)}
    assert {row["edit_type"] for row in added} == {"style"}
    assert len({row["key"] for row in [*OWN, *added]}) == 6
    assert all("score" not in row and row["fps"] == 8.0 for row in added)
    for row in added:
        number = row["instruction"][-2]
        for name, side in (("source_path", "before"), ("target_path", "after")):
            file = work.file(row, name)
            assert file.parent.name == "styles"
            assert os.path.samefile(file, public.parent / side / f"{number}.mp4")
        assert len(read_frames(work.file(row, "source_path"))) == 3


def test_merging_again_gives_the_same(work, public):
    stage = MergeStyles(str(public), COLUMNS)
    assert stage(OWN, work) == stage(OWN, work)
    assert len(list((work.output / "styles").iterdir())) == 8


def test_files_are_copied_where_links_are_not_possible(work, public, monkeypatch):
    def refuse(*names):
        raise OSError("another disk")

    monkeypatch.setattr(styles.os, "link", refuse)
    (first, _) = MergeStyles(str(public), COLUMNS)(OWN, work)
    copy = work.file(first[1], "source_path")
    assert copy.stat().st_nlink == 1
    assert len(read_frames(copy)) == 3
    assert {file.suffix for file in (work.output / "styles").iterdir()} == {".mp4"}


def test_a_file_that_appears_meanwhile_is_left_alone(tmp_path, monkeypatch):
    original, file = tmp_path / "original.mp4", tmp_path / "styles" / "copy.mp4"
    original.write_bytes(b"new")

    def faster(*names):
        file.write_bytes(b"theirs")
        raise FileExistsError

    monkeypatch.setattr(styles.os, "link", faster)
    link(original, file)
    assert file.read_bytes() == b"theirs"


def test_so_many_are_drawn_by_the_seed(work, public):
    def drawn(seed: int, most: int) -> set[str]:
        (first, _) = MergeStyles(str(public), COLUMNS, most=most, seed=seed)(OWN, work)
        return {row["origin"] for row in first[1:]}

    assert len(drawn(0, 2)) == 2
    assert drawn(0, 2) == drawn(0, 2) < drawn(0, 3) < drawn(0, 9)
    assert len({frozenset(drawn(seed, 2)) for seed in range(8)}) > 1


def test_missing_videos_are_left_to_the_next_stage_to_reject(work, public):
    (public.parent / "before/1.mp4").unlink()
    (first, _) = MergeStyles(str(public), COLUMNS)(OWN, work)
    assert len(first) == 5
    assert sum(not work.file(row, "source_path").exists() for row in first[1:]) == 1


def test_nothing_is_added_without_a_manifest_or_without_rows(work, public):
    assert MergeStyles()(OWN, work) == OWN
    assert MergeStyles(str(public), COLUMNS)([], work) == []


def test_paths_that_leave_the_set_are_refused(work, public, tmp_path):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (public.parent / "before/0.mp4").unlink()
    (public.parent / "before/0.mp4").symlink_to(tmp_path / "secret.mp4")
    with pytest.raises(ManifestError, match="through a link"):
        MergeStyles(str(public), COLUMNS)(OWN, work)


def test_parameters_are_checked(tmp_path, public):
    with pytest.raises(ValueError, match="There is no manifest of style edits"):
        MergeStyles(str(tmp_path / "nothing.jsonl"))
    with pytest.raises(ValueError, match="at least 1 row"):
        MergeStyles(str(public), most=0)
