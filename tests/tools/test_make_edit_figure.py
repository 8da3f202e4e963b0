import importlib.util

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("make_edit_figure", repository / "tools" / "make_edit_figure.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def make_panels(tool, count=3, frames=4):
    clips = {name: np.full((frames, 16, 16, 3), level, np.uint8) for name, level in (("source", 10), ("target", 200))}
    clips["edited"] = np.repeat(np.arange(frames, dtype=np.uint8) * 60, 16 * 16 * 3).reshape(frames, 16, 16, 3)
    return [tool.Panel(f"make it <{index}>", clips) for index in range(count)]


def test_a_gif_shows_every_frame_and_a_png_the_middle_one(tool, tmp_path):
    panels = make_panels(tool)
    moving = Image.open(tool.write_figure(panels, tmp_path / "edits.gif", fps=8))
    still = Image.open(tool.write_figure(panels, tmp_path / "edits.png"))
    assert moving.n_frames == 4
    assert moving.size == still.size
    assert {entry.name for entry in tmp_path.iterdir()} == {"edits.gif", "edits.png"}
    colours = {colour for _, colour in still.convert("RGB").getcolors(100_000)}
    assert {(10, 10, 10), (120, 120, 120), (200, 200, 200)} <= colours


def test_other_formats_and_no_panels_are_refused(tool, tmp_path):
    with pytest.raises(ValueError, match=r"\.gif or \.png"):
        tool.write_figure(make_panels(tool), tmp_path / "edits.webp")
    with pytest.raises(ValueError, match="no edit"):
        tool.write_figure([], tmp_path / "edits.png")


def test_the_choice_is_a_success_where_there_is_one(tool):
    rows = [
        {"id": name, "edit_type": "add", "success": success, "psnr": 20.0 + gain, "psnr_copy": 20.0}
        for name, success, gain in (("a", True, 1), ("b", True, 3), ("c", True, 2), ("d", False, 9))
    ]
    assert tool.choose(rows, "add", "best")["id"] == "b"
    assert tool.choose(rows, "add", "median")["id"] == "c"
    assert tool.choose(rows[3:], "add", "median")["id"] == "d"
    assert tool.choose(rows, "style", "best") is None


def test_a_missing_evaluation_exits_with_2_and_a_sentence(tool, tmp_path, capsys):
    status = tool.main(
        ["--evaluation", str(tmp_path), "--manifest", str(tmp_path / "none.parquet"), "--output", "x.gif"]
    )
    assert status == 2
    assert "no manifest" in capsys.readouterr().err
