"""`icve eval` on results that `icve edit` would leave."""

import json
import shutil

import pyarrow.parquet as parquet
import pytest

from icve.cli import evaluate
from icve.data.manifest import read_manifest
from icve.evaluation import suite
from icve.synthetic.pair_files import synthesize_pairs


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("truth")
    synthesize_pairs(folder, 6, seed=3, frames=5)
    return folder


def write_results(truth, out, tiny_model, chosen, by_id=True):
    """The true target of every chosen row as its result; the others failed."""
    out.mkdir()
    lines = []
    for number, row in enumerate(read_manifest(truth / "manifest.parquet")):
        line = {"id": row["id"] if by_id else f"x{number}", "source": f"some/where/{row['source_path']}"}
        line |= {"instruction": row["instruction"], "settings": {"model": str(tiny_model)}, "seconds": 2.0}
        if number in chosen:
            shutil.copy(truth / row["target_path"], out / f"{number}.mp4")
            line |= {"status": "ok", "output": f"{number}.mp4", "error": None}
        else:
            line |= {"status": "failed", "output": None, "error": "no"}
        lines.append(json.dumps(line) + "\n")
    (out / "results.jsonl").write_text("".join(lines))
    return out / "results.jsonl"


@pytest.mark.parametrize("by_id", [True, False])
def test_true_targets_score_perfectly_and_failed_items_are_no_success(truth, tiny_model, tmp_path, by_id, capsys):
    results = write_results(truth, tmp_path / "out", tiny_model, {0, 1, 2, 4}, by_id)
    assert evaluate.main(["synthetic", "--results", str(results), "--truth", str(truth)]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["success_ratio"] == 4 / 6
    assert figures["missing"] == 2
    assert figures["psnr"] == 60.0
    assert 15 < figures["psnr_codec"] < 35
    assert (figures["seconds_edit"], figures["seconds_per_edit"]) == (8.0, 2.0)
    assert len(figures["per_edit_type"]) == 6
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert page.count("<article") == 4


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda results, truth: results.unlink(), "There are no results"),
        (lambda results, truth: results.write_text(""), "no result for any"),
        (lambda results, truth: results.rename(results.with_name("other.jsonl")), "There are no results"),
    ],
)
def test_what_is_missing_is_named(break_it, message, truth, tiny_model, tmp_path, capsys):
    results = write_results(truth, tmp_path / "out", tiny_model, {0})
    break_it(results, truth)
    assert (
        evaluate.main(["synthetic", "--results", str(results), "--truth", str(truth), "--model", str(tiny_model)]) == 2
    )
    assert message in capsys.readouterr().err


def test_missing_truth_and_foreign_lines(truth, tiny_model, tmp_path, capsys):
    results = write_results(truth, tmp_path / "out", tiny_model, {0})
    assert evaluate.main(["synthetic", "--results", str(results), "--truth", str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("[1, 2]\n")
    assert evaluate.main(["synthetic", "--results", str(foreign), "--truth", str(truth)]) == 2
    assert "Line 1 of" in capsys.readouterr().err


def test_a_suite_writes_a_row_per_edit_and_means_with_their_coverage(truth, tiny_model, tmp_path, capsys):
    results = write_results(truth, tmp_path / "out", tiny_model, {0, 1, 2, 4})
    words = ["run", "preservation", "--results", str(results), "--reference", str(truth)]
    assert evaluate.main([*words, "--output", str(tmp_path / "figures")]) == 3
    said = capsys.readouterr()
    assert "4 of 6" in said.out
    assert "2 of 6 edits could not be measured in full" in said.err
    rows = parquet.read_table(tmp_path / "figures" / "metrics.parquet").to_pylist()
    assert [row["psnr_target_frame"] for row in rows] == [60.0, 60.0, 60.0, None, 60.0, None]
    assert [row["error"] for row in rows] == [None, None, None, "There is no result.", None, "There is no result."]
    figures = json.loads((tmp_path / "figures" / "metrics.json").read_text())["figures"]
    assert figures["psnr_target_frame"] == {
        "mean": 60.0,
        "count": 4,
        "interval": [60.0, 60.0],
        "better": "higher",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent.yaml"], "There is no suite of metrics absent.yaml"),
        (["preservation", "--reference", "absent"], "absent"),
        (["preservation", "--results", "absent.jsonl"], "There are no results at absent.jsonl"),
    ],
)
def test_a_suite_that_cannot_run_says_why(truth, tiny_model, tmp_path, words, message, capsys):
    results = write_results(truth, tmp_path / "out", tiny_model, {0})
    assert evaluate.main(["run", *words[:1], "--results", str(results), *words[1:]]) == 2
    assert message in capsys.readouterr().err


def test_lines_without_what_a_result_has_are_refused(truth, tmp_path, capsys):
    (tmp_path / "results.jsonl").write_text('{"id": "a"}\n')
    assert evaluate.main(["run", "preservation", "--results", str(tmp_path / "results.jsonl")]) == 2
    assert "its line of a is no result" in capsys.readouterr().err


def test_what_was_measured_is_kept_and_what_changed_is_measured_again(truth, tiny_model, tmp_path, monkeypatch):
    results = write_results(truth, tmp_path / "out", tiny_model, {0, 1, 2, 4})
    words = ["run", "preservation", "--results", str(results), "--reference", str(truth)]
    words += ["--output", str(tmp_path / "figures")]
    measured = []
    measure_edit = suite.measure_edit
    monkeypatch.setattr(suite, "measure_edit", lambda edit, *more: measured.append(edit) or measure_edit(edit, *more))
    assert evaluate.main(words) == 3
    first = parquet.read_table(tmp_path / "figures" / "metrics.parquet")
    assert len(measured) == 6
    measured.clear()
    assert evaluate.main(words) == 3
    assert measured == []
    assert parquet.read_table(tmp_path / "figures" / "metrics.parquet").equals(first)
    measured.clear()
    shutil.copy(tmp_path / "out" / "1.mp4", tmp_path / "out" / "0.mp4")
    evaluate.main(words)
    assert measured[0].edited == tmp_path / "out" / "0.mp4"
    assert len(measured) == 1


def test_two_editors_are_compared(truth, tiny_model, tmp_path, capsys):
    folders = []
    for name, chosen in (("one", {0, 1, 2, 4}), ("two", {0, 1, 2, 3})):
        results = write_results(truth, tmp_path / name, tiny_model, chosen)
        folders.append(str(tmp_path / f"figures_{name}"))
        words = ["run", "preservation", "--results", str(results), "--reference", str(truth)]
        assert evaluate.main([*words, "--output", folders[-1]]) == 3
    page = (tmp_path / "figures_one" / "metrics.html").read_text()
    assert page.count("<article") == 4
    assert "psnr_target_frame, worst first" in page
    out = tmp_path / "comparison"
    assert evaluate.main(["compare", f"before={folders[0]}", f"after={folders[1]}", "--output", str(out)]) == 0
    rows = json.loads((out / "comparison.json").read_text())
    row = next(row for row in rows if row["figure"] == "psnr_target_frame")
    assert (row["edits"], row["difference"], row["wins"]) == (3, 0, 0.5)
    assert (out / "comparison.html").read_text().count("<article") == 3
    assert "\\toprule" in (out / "comparison.tex").read_text()
    shutil.rmtree(tmp_path / "two")  # the figures are still there
    capsys.readouterr()
    assert evaluate.main(["compare", *folders, "--output", str(out)]) == 0
    assert "The page lacks the videos of figures_two" in capsys.readouterr().err
    assert evaluate.main(["compare", folders[0]]) == 2
    assert "two folders or more" in capsys.readouterr().err
