import importlib.util
import json
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def tool(repository):
    path = repository / "tools" / "experiment_conditions.py"
    spec = importlib.util.spec_from_file_location("experiment_conditions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_box_lies_around_what_is_marked_in_its_frame(tool):
    mask = np.zeros((2, 6, 6), bool)
    mask[0, 1, 2] = mask[0, 3, 4] = True
    boxed = tool.box(mask)
    assert boxed[0].sum() == boxed[0, 1:4, 2:5].sum() == 9
    assert not boxed[1].any()
    assert mask.sum() == 2


def test_a_line_has_the_share_and_its_interval(tool):
    assert tool.line("twins", [{"success": n < 9} for n in range(10)]) == "| twins | 10 | 90.0% (59.6% to 98.2%) |"


@pytest.mark.slow
def test_every_editor_is_trained_and_measured(tool, tmp_path, monkeypatch, capsys):
    words = ["--steps", "1", "--pairs", "4", "--edits", "6", "--plain", "--output", str(tmp_path)]
    options = ["--data.init_args.batch_size=2", "--data.init_args.num_workers=0", "--trainer.precision=32-true"]
    monkeypatch.setattr(sys, "argv", ["experiment_conditions.py", *words, "--", *options])
    tool.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if "% to " in line]
    arms = [row.split("|")[1].split(",")[0].strip() for row in rows]
    assert arms == ["conditions"] * 6 + ["shipped"] * 2 + ["plain"] * 2
    swapped = json.loads((tmp_path / "conditions.json").read_text())["references, swapped"]
    assert len(swapped) == 2
