"""The report page of a run: loss curves, figures per edit type, and edits that play in step beside source and target.

One HTML file with everything inside (styles, script, clips as WebP sprite sheets), so that it opens from a folder, a
mail or an archive without a server. A sheet holds one example's clips as columns and their frames as rows; all canvases
are drawn by one clock, which keeps every clip in step without video codecs or buffering.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from icve.evaluation.curves import Curve, curve_chart
from icve.evaluation.tables import Table, number
from icve.evaluation.templates import decibels, render
from icve.runtime.atomic import write_text
from icve.runtime.printable import as_text
from icve.web.sprite_sheet import sprite_sheet

_REGIONS = {"PSNR": "", "inside": "_inside", "outside": "_outside"}  # heading → how the keys of its figures end
_REFERENCES = {"copy": "psnr_copy", "codec": "psnr_codec"}
# What edits are sorted by.
_FIGURES = {"gain": "PSNR gain", "psnr": "PSNR", "inside": "PSNR inside", "outside": "PSNR outside"}


@dataclass(frozen=True)
class Section:
    """What is shown of a training stage: ``curves`` by name (step, value) and, when it was evaluated, its ``figures``;
    or ``tables`` of other figures.

    ``train`` curves are noisy and drawn smoothed over their raw values, ``validation`` curves as they are.
    """

    name: str
    figures: Mapping[str, Any] | None = None
    train: Mapping[str, Curve] = field(default_factory=dict)
    validation: Mapping[str, Curve] = field(default_factory=dict)
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Example:
    """One edit to play: ``clips`` by label in the order shown, uint8 (F,H,W,3) of one shape; the first is the source.

    ``figures`` is the row of :func:`icve.evaluation.synthetic.measure_edit` for the final result, None where there is
    no true target; ``facts`` are shown as they are; ``fps`` is the rate to play at, None the page's; ``measured`` are
    figures of any metrics, by which examples can be sorted.
    """

    instruction: str
    edit_type: str
    clips: Mapping[str, np.ndarray]
    figures: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


def write_report(
    path: str | Path,
    sections: Sequence[Section],
    examples: Sequence[Example],
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
    title: str = "In-context video editing",
    introduction: str = "",
    fps: float = 8.0,
    heading: str = "Edits of videos never seen in training",
    lower_is_better: Collection[str] = (),
) -> Path:
    """Write the page (whole or not at all) and return its path.

    ``settings`` is shown as given (nested mappings and multi-line strings allowed), ``seconds`` as a table of times.
    Every text is escaped; nothing in the page is loaded from elsewhere. ``lower_is_better`` names those figures of
    examples' ``measured`` of which less is better.
    """
    types = sorted({example.edit_type for example in examples if example.edit_type})
    figures = _FIGURES if any(example.figures for example in examples) else {}
    orders = {"index": "as made"} | ({"kind": "type"} if types else {})
    for key, label in figures.items():
        orders |= {key: f"{label}, best first", f"-{key}": f"{label}, worst first"}
    measured = {name: f"m{number}" for number, name in enumerate(_measured(examples))}
    for name, key in measured.items():
        best, worst = (f"-{key}", key) if name in lower_is_better else (key, f"-{key}")
        orders |= {best: f"{name}, best first", worst: f"{name}, worst first"}
    page = render(
        "report.html.jinja",
        title=title,
        introduction=introduction,
        heading=heading,
        sections=sections,
        cards=[_card(index, example, fps, measured) for index, example in enumerate(examples)],
        kinds={"": "all"} | {name: name for name in types} if types else {},
        figures=figures,
        orders=orders,
        seconds=seconds,
        settings={name: value if isinstance(value, str) else _json(value) for name, value in settings.items()},
        figures_table=figures_table,
        curve_chart=curve_chart,
    )
    return write_text(path, as_text(str(page)))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def figures_table(figures: Mapping[str, Any]) -> Markup:
    """HTML table of the benchmark's figures, all edits first, then one row per edit type."""
    groups = {"all": figures} | dict(figures.get("per_edit_type", {}))
    groups |= {f"split {name}": group for name, group in figures.get("per_split", {}).items()}
    columns = []  # heading, key, what the cell shows
    for name, region in _REGIONS.items():
        columns.append((name, f"psnr{region}", "psnr"))
        columns += [(heading, key + region, "reference") for heading, key in _REFERENCES.items()]
    columns = [column for column in columns if any(group.get(column[1]) is not None for group in groups.values())]
    return render("figures_table.html.jinja", groups=groups, columns=columns)


def _measured(examples: Sequence[Example]) -> list[str]:
    return list(dict.fromkeys(name for example in examples for name in example.measured))


def _card(index: int, example: Example, fps: float, measured: Mapping[str, str]) -> dict[str, Any]:
    """What the page shows of an example: its data attributes, facts and clips."""
    frames, height, width, _ = next(iter(example.clips.values())).shape
    figures = example.figures
    facts = {"type": example.edit_type} if example.edit_type else {}
    data = {"index": index, "kind": example.edit_type, "frames": frames, "fps": example.fps or fps}
    if figures is not None:
        outcome = "success" if figures["success"] else "failed"
        facts["result"] = Markup(f'<span class="{outcome}">{outcome}</span>')
        gain = figures["psnr"] - figures["psnr_copy"]
        values = gain, *(figures[f"psnr{region}"] for region in _REGIONS.values())
        data["outcome"] = int(figures["success"])
        data |= {name: value for name, value in zip(_FIGURES, values, strict=True) if value is not None}
    facts |= {**example.facts, **{name: number(value) for name, value in example.measured.items()}}
    data |= {measured[name]: value for name, value in example.measured.items()}
    if figures is not None:
        for label, region in _REGIONS.items():
            copy = decibels(figures["psnr_copy" + region])
            facts[label] = Markup(f"{decibels(figures['psnr' + region])} <small>copy {copy}</small>")
    data = {name: f"{value:.7g}" if isinstance(value, float) else value for name, value in data.items()}
    sheet = sprite_sheet(list(example.clips.values()))
    return {"example": example, "data": data, "facts": facts, "width": width, "height": height, "sheet": sheet}
