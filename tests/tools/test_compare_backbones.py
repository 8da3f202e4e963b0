import importlib.util
import json

import pytest

from icve.cli.demo.run import BACKBONES


@pytest.fixture
def tool(repository):
    spec = importlib.util.spec_from_file_location("compare_backbones", repository / "tools/compare_backbones.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_every_backbone_is_timed_against_the_first(tool):
    _, _, *rows = (row.strip("|").split("|") for row in tool.step_table(steps=1, batch=1))
    assert [row[0].strip() for row in rows] == list(BACKBONES)
    assert float(rows[0][-1]) == 1.0
    assert all(float(cell) > 0 for row in rows for cell in row[2:])


def test_a_demo_is_a_row_of_what_it_found(tool, tmp_path, monkeypatch):
    edits = {"success_ratio": 0.875, "success_interval": [0.8, 0.95], "psnr_inside": 16.0, "psnr_outside": 20.0}
    metrics = {"settings": {"seed": 3, "backbone": "wan"}, "after_sft": edits, "after_pretrain": {"success_ratio": 0.5}}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    curves = {"val/loss_sigma_0.1": [(1, 9.0), (2, 1.0)], "val/loss_sigma_0.9": [(2, 0.5)], "val/loss": [(2, 7.0)]}
    monkeypatch.setattr(tool, "read_curves", lambda run: curves)
    *_, row = tool.learned_table([tmp_path])
    assert row == "| wan | 3 | 87.5% | 80.0% to 95.0% | 50.0% | 16.00 | 20.00 | 0.7500 |"
