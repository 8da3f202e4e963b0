"""Editors compared by rows whose differences are known."""

import json

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from icve.evaluation.comparison import compare, comparison_table, differences, read_measured


def write(folder, rows, suite="s"):
    folder.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), folder / "metrics.parquet")
    figures = {"psnr": {"better": "higher"}, "lpips": {"better": "lower"}}
    (folder / "metrics.json").write_text(json.dumps({"suite": suite, "figures": figures}))
    return str(folder)


def row(source, psnr, lpips, instruction="make it red"):
    about = {"id": source, "source": f"there/{source}.mp4", "instruction": instruction, "edit_type": "", "edited": ""}
    return about | {"error": None, "psnr": psnr, "lpips": lpips}


@pytest.fixture
def folders(tmp_path):
    first = [row("a", 20.0, 0.5), row("b", 22.0, 0.5), row("c", 30.0, None), row("only", 1.0, 1.0)]
    second = [row("b", 25.0, 0.4), row("a", 21.0, 0.5), row("c", 30.0, 0.1), row("a", 9.0, 0.9, "another one")]
    return [write(tmp_path / "one", first), write(tmp_path / "two", second)]


def test_differences_are_of_edits_that_both_have(folders):
    measured = read_measured(folders)
    psnr, lpips = compare(measured)
    assert (psnr["first"], psnr["second"], psnr["edits"]) == ("one", "two", 3)
    assert psnr["means"] == pytest.approx((24.0, 76 / 3))
    assert psnr["difference"] == pytest.approx(4 / 3)
    assert psnr["wins"] == pytest.approx(2.5 / 3)
    assert 0 <= psnr["interval"][0] <= 4 / 3 <= psnr["interval"][1] <= 3
    assert (lpips["edits"], lpips["wins"]) == (2, 0.75)  # less is better, an equal figure is half a win
    assert lpips["difference"] == pytest.approx(-0.05)
    assert differences(*measured)["b.mp4", "make it red"] == pytest.approx({"psnr": 3.0, "lpips": 0.1})
    assert comparison_table([psnr]).rows[0][:7] == ["psnr", "higher", "one", "two", "24", "25.33", "1.333"]


def test_folders_may_be_named(folders):
    assert [each.name for each in read_measured([f"before={folders[0]}", f"after={folders[1]}"])] == ["before", "after"]


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    with pytest.raises(ValueError, match="Two folders are called one: name them"):
        read_measured([folders[0], folders[0]])
    other = write(tmp_path / "other", [row("z", 1.0, 1.0)], suite="another")
    with pytest.raises(ValueError, match="one and other were measured by different metrics"):
        read_measured([folders[0], other])
    with pytest.raises(ValueError, match="There are no figures in"):
        read_measured([folders[0], str(tmp_path / "absent")])
    alone = write(tmp_path / "alone", [row("z", 1.0, 1.0)])
    with pytest.raises(ValueError, match="no edit in common"):
        compare(read_measured([folders[0], alone]))
