import html.parser
import os
import re

import numpy as np
import pytest

from icve.evaluation.report import Example, Section, figures_table, write_report
from icve.evaluation.synthetic import summarise
from icve.web.sprite_sheet import sprite_sheet
from tests.browser import probe_page

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> & 'quotes' </article>"


def make_row(**changes):
    row = {"id": "e", "edit_type": "add", "instruction": "i", "success": True, "nearest": "target"}
    for subject, value in (("psnr", 24.0), ("psnr_copy", 14.0), ("psnr_codec", 33.0)):
        row |= {subject: value, f"{subject}_inside": value - 3, f"{subject}_outside": value + 3}
    return row | changes


def make_examples(frames: int = 5, size: int = 16) -> list[Example]:
    """Clips of one colour per frame, so that what a canvas shows tells which frame it stands at."""
    ramp = np.repeat(np.arange(frames, dtype=np.uint8) * 40, size * size * 3).reshape(frames, size, size, 3)
    clips = {"source": ramp, "after <fine-tuning>": ramp + np.uint8(20), "target": ramp}
    rows = [
        make_row(psnr=20.0),
        make_row(edit_type="style", psnr=30.0, psnr_outside=None, psnr_copy_outside=None),
        make_row(edit_type="remove", psnr=10.0, success=False, nearest="distractor_2"),
    ]
    facts = {"nearest to": f"nearest {HOSTILE}"}
    return [Example(f"{HOSTILE} {i}", row["edit_type"], clips, row, facts) for i, row in enumerate(rows)]


@pytest.fixture
def page(tmp_path):
    examples = make_examples()
    figures = summarise([example.figures for example in examples])
    curve = [(step, 1.0 / (step + 1)) for step in range(50)]
    stages = [
        Section("Pretraining", None, {"loss": curve}, {"σ 0.25": curve, "σ 0.75": curve}),
        Section(f"Fine-tuning {HOSTILE}", figures, {"loss": curve}),
    ]
    settings = {"sft.yaml": f"a: {HOSTILE}\n", "counts": {"videos": 3, "name": HOSTILE}}
    return write_report(tmp_path / "out" / "report.html", stages, examples, settings, {"seconds_sft": 83.2}, HOSTILE)


class Page(html.parser.HTMLParser):
    """Collects what a page loads and refers to, and the nesting errors a browser would repair silently."""

    VOID = frozenset({"meta", "img", "input", "br", "link", "line", "path", "circle"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.open, self.text = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_page_loads_nothing_from_elsewhere(page):
    text = page.read_text(encoding="utf-8")
    parsed = Page(text)
    assert parsed.references
    assert all(reference.startswith("data:image/webp;base64,") for reference in parsed.references)
    assert not re.search(r"https?://|@import|url\(|\blink\b", re.sub(r"base64,[\w+/=]+", "", text))


def test_texts_are_escaped_and_the_markup_is_balanced(page):
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.open == []
    assert parsed.tags.count("script") == 1
    assert parsed.tags.count("img") == len(make_examples())
    assert sum(HOSTILE in piece for piece in parsed.text) >= 5  # shown as text: titles, instructions, settings


def test_no_temporary_file_stays_behind(page):
    assert os.listdir(page.parent) == ["report.html"]


def test_table_lists_all_edits_first_and_marks_absent_regions():
    rows = [make_row(), make_row(edit_type="style", psnr_outside=None, psnr_copy_outside=None, psnr_codec_outside=None)]
    table = figures_table(summarise(rows))
    assert re.findall(r'<tr class="\w+"><th>(\w+)</th>', table) == ["all", "add", "style"]
    assert table.count("–") == 3


def test_sprite_sheet_has_clips_as_columns_and_frames_as_rows():
    import base64
    import io

    from PIL import Image

    dark, light = np.zeros((4, 8, 6, 3), np.uint8), np.full((4, 8, 6, 3), 255, np.uint8)
    url = sprite_sheet([dark, light])
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("L"))
    assert image.shape == (4 * 8, 2 * 6)
    assert image[:, :5].max() < 40
    assert image[:, 7:].min() > 215


PROBE = """setTimeout(() => {
  const get = (id) => document.getElementById(id);
  const visible = () => [...document.querySelectorAll("article")].filter((a) => !a.hidden).map((a) => a.dataset.index);
  const level = (canvas) => canvas.getContext("2d").getImageData(8, 8, 1, 1).data[0];
  const levels = () => [...document.querySelectorAll("canvas")].map(level);
  const set = (id, value) => { get(id).value = value; get(id).dispatchEvent(new Event("input")); };
  const out = {title: document.title, all: visible()};
  if (get("play").textContent === "Pause") get("play").click();
  out.before = levels(); get("step").click(); out.after = levels();
  set("outcome", "0"); out.failed = visible(); set("outcome", "");
  set("kind", "style"); out.style = visible(); set("kind", "");
  set("order", "gain"); out.best = visible(); set("order", "-gain"); out.worst = visible();
  set("order", "kind"); out.kinds = visible(); set("order", "outside"); out.outside = visible();
  set("order", "index"); set("figure", "psnr"); set("least", "15"); out.least = visible(); set("least", "");
  get("heat").click(); out.heat = levels();
  done(out);
}, 500);"""


@pytest.mark.slow
def test_page_works_in_a_browser(page, tmp_path):
    """Filters, order, stepping (every canvas at the same frame) and the heat map, in headless Chromium."""
    found = probe_page(page.read_text(encoding="utf-8"), PROBE, tmp_path)
    assert found["title"] == HOSTILE
    assert found["all"] == ["0", "1", "2"]
    assert found["failed"] == ["2"]
    assert found["style"] == ["1"]
    assert found["best"] == ["1", "0", "2"]
    assert found["worst"] == ["2", "0", "1"]
    assert found["kinds"] == ["0", "2", "1"]
    assert found["outside"][-1] == "1"  # a style edit has no outside: last, whichever way it is sorted
    assert found["least"] == ["0", "1"]
    for moment in ("before", "after"):
        sources = found[moment][::3]
        assert max(sources) - min(sources) <= 6  # all cards show the same frame ...
        assert all(abs(s - t) <= 6 for s, t in zip(sources, found[moment][2::3], strict=True))  # ... in every column
    assert abs(found["after"][0] - found["before"][0]) > 20
    assert found["heat"][2] < 20 < found["heat"][1]  # target equals the source: black; the result differs
