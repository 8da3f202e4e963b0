import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from icve.curation.part_files import write_part
from icve.curation.preview import write_preview
from icve.curation.preview_pictures import FRAMES, OUTLINE, SIDE, Pictures, Strip
from icve.curation.stage import Rejected, Workspace
from icve.data.masks import save_mask
from icve.data.media.video import write_video
from tests.browser import probe_page

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"> & 'quotes' </article>"


def write_run(folder, source, stages, root=None, shards=("000000",), output=None):
    """A run's folder: stages are (name, parameters, {shard: (kept, rejected, passed)}), the first the inputs."""
    described = []
    for number, (name, parameters, parts) in enumerate(stages):
        place = f"{number:02d}-{name}"
        spec = {"class_path": f"icve.{name}", "version": 1, "parameters": parameters}
        for shard, (kept, rejected, passed) in parts.items():
            write_part(folder / "stages" / place / f"{shard}.parquet", "", spec, kept, rejected, passed, 0.5)
        more = {"number": number, "needs": "cpu", "scope": "rows", "identity": "", "name": name, "folder": place}
        described.append(spec | more)
    paths = {"input": str(source), "output": str(output or folder), "root": str(root or output or folder)}
    run = {"pipeline": {}, "stages": described[1:], "shards": {shard: [] for shard in shards}}
    (folder / "run.json").write_text(json.dumps(run | paths))
    return folder


class Page(html.parser.HTMLParser):
    """What a page shows: texts, pictures, tiles and articles; asserts that the markup is balanced and inert."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, path):
        super().__init__()
        self.open, self.texts, self.pictures, self.links, self.articles, self.tiles = [], [], [], [], [], 0
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert not any(name.startswith("on") for name in attrs)
        assert tag not in ("script", "link", "iframe")
        self.pictures += [attrs["src"]] if tag == "img" else []
        self.links += [attrs["href"]] if tag == "a" else []
        self.articles += [attrs["class"]] if tag == "article" else []
        self.tiles += attrs.get("class") == "tile"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return "\n".join(self.texts)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """A folder of raw videos: frames of one grey level each, 20 n for frame n; a portrait one; a damaged one."""
    folder = tmp_path_factory.mktemp("raw")
    levels = (np.arange(12) * 20).astype(np.uint8)
    write_video(folder / "a.mp4", np.broadcast_to(levels[:, None, None, None], (12, 64, 96, 3)), 8, crf=4)
    write_video(folder / "tall.mp4", np.full((6, 96, 64, 3), 90, np.uint8), 8)
    (folder / "broken.mp4").write_bytes((folder / "a.mp4").read_bytes()[:700])
    return folder


def pixels(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2]))).convert("RGB")).astype(int)


def test_strip_shows_frames_of_the_scene(raw):
    work = Workspace(raw, raw, raw)
    (strip,) = Pictures(work).strips({"video": "a.mp4", "scene_start": 2, "scene_end": 12})
    picture = pixels(strip.picture)
    assert picture.shape == (strip.height, strip.width, 3) == (SIDE * 64 // 96, FRAMES * SIDE, 3)
    shown = [picture[:, k * SIDE + 20 : (k + 1) * SIDE - 20].mean() for k in range(FRAMES)]
    assert np.allclose(shown, [20 * n for n in (2, 5, 8, 11)], atol=6)
    assert "2, 5, 8, 11" in strip.caption
    (tall,) = Pictures(work).strips({"video": "tall.mp4"})
    assert (tall.height, tall.width) == (SIDE, FRAMES * SIDE * 64 // 96)


def test_a_pair_has_two_strips_and_an_outline(raw, tmp_path):
    mask = np.zeros((6, 64, 96), bool)
    mask[:, 16:48, 24:72] = True
    mask[3:] = False
    save_mask(tmp_path / "m.npz", mask)
    (tmp_path / "a.mp4").write_bytes((raw / "a.mp4").read_bytes())
    row = {"source_path": "a.mp4", "source_start": 3, "source_frames": 6, "target_path": "a.mp4", "mask_path": "m.npz"}
    source, target = Pictures(Workspace(raw, tmp_path, tmp_path)).strips(row)
    assert source.caption.startswith("source: a.mp4, frames 3, ")
    assert target.caption.startswith("target: a.mp4, frames 0, ")
    near = np.abs(pixels(source.picture) - OUTLINE).sum(2) < 120
    left, right = near[:, :SIDE], near[:, -SIDE:]
    assert left.any()
    rows, columns = np.nonzero(left)
    box = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1]) / (SIDE / 96)
    assert np.allclose(box, (16, 48, 24, 72), atol=2)
    assert not left[rows.min() + 10 : rows.max() - 10, columns.min() + 10 : columns.max() - 10].any()  # not filled
    assert not right.any()  # the mask is empty there


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"video": "absent.mp4"}, "No such file"),
        ({"video": "broken.mp4"}, "it has no frames"),
        ({"video": "../raw.mp4"}, "leaves"),
        ({"video": "a.mp4", "scene_start": 50}, "no clip from frame 50"),
        ({"source_path": 7}, "must be a path"),
    ],
)
def test_what_cannot_be_shown_says_why(raw, row, reason):
    (strip,) = Pictures(Workspace(raw, raw, raw)).strips(row)
    assert strip.picture is None
    assert reason in strip.caption


def test_what_killed_the_run_is_not_opened_again(raw, monkeypatch):
    monkeypatch.setattr("icve.curation.preview_pictures._picture", lambda *_: pytest.fail("opened"))
    for reason in ("timed out", "process died", "error", "unreadable video"):
        (strip,) = Pictures(Workspace(raw, raw, raw)).strips({"video": "a.mp4"}, Rejected(reason))
        assert strip == Strip("video: not opened, since the run could not get through it")


def test_enormous_frames_are_not_decoded(raw, monkeypatch):
    monkeypatch.setattr("icve.curation.preview_pictures._LARGEST", 64 * 96 - 1)
    monkeypatch.setattr("icve.curation.preview_pictures.probe", lambda _: pytest.fail("decoded"))
    (strip,) = Pictures(Workspace(raw, raw, raw)).strips({"video": "a.mp4"})
    assert "too large to show" in strip.caption


@pytest.fixture
def run(raw, tmp_path):
    """Two shards; the second stage has finished one of them."""
    names = ["a.mp4", "tall.mp4", "broken.mp4", HOSTILE]
    first = [{"key": str(n), "video": name, "note": HOSTILE} for n, name in enumerate(names)]
    more = [{"key": f"m{n}", "video": "a.mp4"} for n in range(8)]
    unreadable = [(first[2], Rejected("unreadable video", "it is damaged")), (first[3], Rejected("error", HOSTILE))]
    scenes = [{**first[0], "scene_start": n, "scene_end": n + 4, "motion": 0.123456789} for n in (0, 4)]
    dark = [(row, Rejected("too dark", f"mean luma {n}")) for n, row in enumerate(more)]
    stages = [
        ("inputs", {}, {"000000": (first, [], 4), "000001": (more, [], 8)}),
        ("Probe", {"min_side": 32}, {"000000": (first[:2], unreadable, 2), "000001": (more, [], 8)}),
        ("Scenes", {"text": HOSTILE}, {"000000": (scenes, [(first[1], Rejected("too short"))], 1)}),
    ]
    stages[2][2]["000001"] = ([], dark, 0)
    pairs = [{**scenes[0], "source_path": "a.mp4", "target_path": "a.mp4", "instruction": f"Add {HOSTILE}"}]
    stages.append(("Pairs", {}, {"000000": (pairs, [(scenes[1], Rejected("no instruction"))], 1)}))
    folder = tmp_path / "run"
    folder.mkdir()
    return write_run(folder, raw, stages, root=raw, shards=("000000", "000001"))


def test_page(run):
    page = Page(write_preview(run, samples=3))
    assert [path.name for path in run.iterdir() if path.suffix == ".html"] == ["preview.html"]
    assert not list(run.glob(".*"))
    assert all(picture.startswith("data:image/webp;base64,") for picture in page.pictures)
    assert page.links == ["#stage-1", "#stage-2", "#stage-3"]
    style = re.sub(r"base64,[\w+/=]+", "", (run / "preview.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?://|@import|url\(", style)
    # Probe: 3 kept, 2 rejected; Scenes: 2 kept, 3 rejected; Pairs: 1 and 1.
    assert page.articles == ["kept"] * 3 + ["rejected"] * 2 + ["kept"] * 2 + ["rejected"] * 3 + ["kept", "rejected"]
    for text in ("too dark", "too short", "unreadable video", "it is damaged", "Kept: 3 of 10", "Rejected: 3 of 9"):
        assert text in page.text
    assert "too short 1" in page.text
    assert page.text.count(HOSTILE) >= 4  # as text: a file's name, a detail, an instruction, a parameter
    assert "1 of 2 shards are through all stages" in page.text


def test_funnel_adds_up(run):
    text = write_preview(run).read_text(encoding="utf-8")
    table = re.search(r"<tbody>(.*?)</tbody>", text).group(1)
    rows = [re.findall(r"<td>(\d+)</td>", row) for row in table.split("</tr>")[:-1]]
    counts = [tuple(map(int, row)) for row in rows]  # in, rejected, passed, out
    assert counts == [(12, 0, 12, 12), (12, 2, 10, 10), (10, 9, 1, 2), (2, 1, 1, 1)]


def test_samples_depend_on_the_seed_alone(run):
    first = write_preview(run, samples=2, seed=1).read_bytes()
    assert write_preview(run, samples=2, seed=1).read_bytes() == first
    assert any(write_preview(run, samples=2, seed=seed).read_bytes() != first for seed in range(2, 6))


def test_every_reason_is_among_the_samples(run):
    for seed in range(4):
        page = Page(write_preview(run, samples=2, seed=seed))
        scenes = page.text.partition("Scenes")[2]
        assert "mean luma" in scenes
        assert "too short" in scenes


def test_a_run_that_was_moved_finds_its_own_files(raw, tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes((raw / "a.mp4").read_bytes())
    row = {"key": "1", "video": "a.mp4", "source_path": "clip.mp4"}
    stages = [("inputs", {}, {"000000": ([row], [], 1)}), ("Write", {}, {"000000": ([row], [], 1)})]
    write_run(folder, raw, stages, output=tmp_path / "made" / "elsewhere")
    page = Page(write_preview(folder))
    assert len(page.pictures) == 1
    assert page.tiles == 0


def test_unfinished_runs_and_other_folders(raw, tmp_path):
    with pytest.raises(FileNotFoundError, match="no curation run"):
        write_preview(tmp_path)
    write_run(tmp_path, raw, [("inputs", {}, {}), ("Probe", {}, {})])
    page = Page(write_preview(tmp_path))
    assert page.articles == []
    assert "No rows yet." in page.text
    with pytest.raises(ValueError, match="at least 1"):
        write_preview(tmp_path, samples=0)


@pytest.mark.slow
def test_page_in_a_browser(run, tmp_path):
    """Every picture decodes, and nothing is wider than the window."""
    script = """const pictures = [...document.images];
      done({title: document.title, decoded: pictures.every((p) => p.complete && p.naturalWidth > 0),
        count: pictures.length, wide: document.documentElement.scrollWidth - innerWidth});"""
    found = probe_page(write_preview(run).read_text(encoding="utf-8"), script, tmp_path)
    assert found["decoded"]
    assert found["count"] > 10
    assert found["wide"] <= 0
    assert found["title"].startswith("Curation of raw")
