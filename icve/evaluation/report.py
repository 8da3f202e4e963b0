"""The report page of a run: loss curves, figures per edit type, and edits that play in step beside source and target.

One HTML file with everything inside (styles, script, clips as WebP sprite sheets), so that it opens from a folder, a
mail or an archive without a server. A sheet holds one example's clips as columns and their frames as rows; all canvases
are drawn by one clock, which keeps every clip in step without video codecs or buffering.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from icve.evaluation.curves import Curve, curve_chart
from icve.runtime.atomic import write_text
from icve.runtime.printable import as_text
from icve.web.sprite_sheet import sprite_sheet

_READING = (
    "<p class='note'>Success: nearer to the true target than to the source and to four distractor targets. "
    "PSNR in dB against the true target, mean over edits; inside and outside the edit mask. "
    "<em>copy</em>: the source returned unchanged; <em>codec</em>: the codec's reconstruction of the target.</p>"
)
_REGIONS = {"PSNR": "", "inside": "_inside", "outside": "_outside"}  # heading → how the keys of its figures end
_REFERENCES = {"copy": "psnr_copy", "codec": "psnr_codec"}
# What edits are sorted by.
_FIGURES = {"gain": "PSNR gain", "psnr": "PSNR", "inside": "PSNR inside", "outside": "PSNR outside"}


@dataclass(frozen=True)
class Section:
    """What is shown of a training stage: ``curves`` by name (step, value) and, when it was evaluated, its ``figures``.

    ``train`` curves are noisy and drawn smoothed over their raw values, ``validation`` curves as they are.
    """

    name: str
    figures: Mapping[str, Any] | None = None
    train: Mapping[str, Curve] = field(default_factory=dict)
    validation: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """One edit to play: ``clips`` by label in the order shown, uint8 (F,H,W,3) of one shape; the first is the source.

    ``figures`` is the row of :func:`icve.evaluation.synthetic.measure_edit` for the final result, None where there is
    no true target; ``facts`` are shown as they are; ``fps`` is the rate to play at, None the page's.
    """

    instruction: str
    edit_type: str
    clips: Mapping[str, np.ndarray]
    figures: Mapping[str, Any] | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    fps: float | None = None


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
) -> Path:
    """Write the page (whole or not at all) and return its path.

    ``settings`` is shown as given (nested mappings and multi-line strings allowed), ``seconds`` as a table of times.
    Every text is escaped; nothing in the page is loaded from elsewhere.
    """
    assets = resources.files("icve.evaluation")
    body = [
        f"<header><h1>{html.escape(title)}</h1>",
        f"<p>{html.escape(introduction)}</p>" if introduction else "",
        _READING if any(section.figures for section in sections) else "",
        "</header><main>",
        *(_figures_section(section) for section in sections),
        _examples_section(examples, fps, heading),
        _times_section(seconds),
        _settings_section(settings),
        "</main>",
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{assets.joinpath('report.css').read_text(encoding='utf-8')}</style>"
        f"</head><body>{''.join(body)}"
        f"<script>{assets.joinpath('report.js').read_text(encoding='utf-8')}</script></body></html>"
    )
    return write_text(path, as_text(page))


def figures_table(figures: Mapping[str, Any]) -> str:
    """HTML table of the benchmark's figures, all edits first, then one row per edit type."""
    groups = {"all": figures} | dict(figures.get("per_edit_type", {}))
    columns = []  # heading, key, what the cell shows
    for name, region in _REGIONS.items():
        columns.append((name, f"psnr{region}", "psnr"))
        columns += [(heading, key + region, "reference") for heading, key in _REFERENCES.items()]
    columns = [column for column in columns if any(group.get(column[1]) is not None for group in groups.values())]
    head = "".join(f'<th class="{kind}">{html.escape(heading)}</th>' for heading, _, kind in columns)
    rows = []
    for name, group in groups.items():
        cells = "".join(f'<td class="{kind}">{decibels(group.get(key))}</td>' for _, key, kind in columns)
        share = float(group["success_ratio"])
        low, high = group["success_interval"]
        rows.append(
            f'<tr class="{"all" if name == "all" else "kind"}"><th>{html.escape(name)}</th><td>{group["count"]}</td>'
            f'<td class="share"><meter min="0" max="1" value="{share:.4f}"></meter> {share:.0%}</td>'
            f'<td class="reference">{low:.0%} to {high:.0%}</td>{cells}</tr>'
        )
    return (
        '<div class="scroll"><table class="figures"><thead><tr><th>edit type</th><th>edits</th>'
        '<th>success</th><th class="reference">95 % interval</th>'
        f"{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _figures_section(section: Section) -> str:
    charts = []
    if section.train:
        charts.append(curve_chart(section.train, "training loss", smoothed=True))
    if section.validation:
        charts.append(curve_chart(section.validation, "validation loss at fixed noise"))
    table = figures_table(section.figures) if section.figures else ""
    return f'<section><h2>{html.escape(section.name)}</h2>{table}<div class="charts">{"".join(charts)}</div></section>'


def _examples_section(examples: Sequence[Example], fps: float, heading: str) -> str:
    if not examples:
        return ""
    measured = any(example.figures for example in examples)
    kinds = sorted({example.edit_type for example in examples if example.edit_type})
    controls = [
        '<button type="button" id="play">Pause</button><button type="button" id="step">Next frame</button>',
        _select("speed", "speed", {"0.25": "¼×", "0.5": "½×", "1": "1×"}, "1"),
        _select("kind", "type", {"": "all"} | {kind: kind for kind in kinds}) if kinds else "",
    ]
    orders = {"index": "as made"} | ({"kind": "type"} if kinds else {})
    if measured:
        controls.append(_select("outcome", "result", {"": "all", "1": "succeeded", "0": "failed"}))
        least = '<label>at least <input type="number" id="least" step="0.5" size="5"> dB</label>'
        controls += [_select("figure", "figure", _FIGURES), least]
        for key, label in _FIGURES.items():
            orders |= {key: f"{label}, best first", f"-{key}": f"{label}, worst first"}
    controls += [
        _select("order", "sort", orders),
        '<label><input type="checkbox" id="heat"> difference to the source</label><output id="shown"></output>',
    ]
    cards = "".join(_card(index, example, fps) for index, example in enumerate(examples))
    return (
        f'<section id="examples"><h2>{html.escape(heading)}</h2>'
        f'<form class="controls" autocomplete="off">{"".join(controls)}</form><div id="cards">{cards}</div></section>'
    )


def _select(name: str, label: str, options: Mapping[str, str], chosen: str = "") -> str:
    items = "".join(
        f'<option value="{html.escape(value, quote=True)}"{" selected" if value == chosen else ""}>'
        f"{html.escape(text)}</option>"
        for value, text in options.items()
    )
    return f'<label>{label} <select id="{name}">{items}</select></label>'


def _card(index: int, example: Example, fps: float) -> str:
    frames, height, width, _ = next(iter(example.clips.values())).shape
    figures = example.figures
    canvases = "".join(
        f'<figure><canvas width="{width}" height="{height}" data-column="{column}"></canvas>'
        f"<figcaption>{html.escape(label)}</figcaption></figure>"
        for column, label in enumerate(example.clips)
    )
    facts = {"type": html.escape(example.edit_type)} if example.edit_type else {}
    data = {"index": index, "kind": example.edit_type, "frames": frames, "fps": example.fps or fps}
    if figures is not None:
        outcome = "success" if figures["success"] else "failed"
        facts["result"] = f'<span class="{outcome}">{outcome}</span>'
        gain = figures["psnr"] - figures["psnr_copy"]
        values = gain, *(figures[f"psnr{region}"] for region in _REGIONS.values())
        data["outcome"] = int(figures["success"])
        data |= {name: value for name, value in zip(_FIGURES, values, strict=True) if value is not None}
    facts |= {html.escape(name): html.escape(text) for name, text in example.facts.items()}
    if figures is not None:
        for label, region in _REGIONS.items():
            copy = decibels(figures["psnr_copy" + region])
            facts[label] = f"{decibels(figures['psnr' + region])} <small>copy {copy}</small>"
    attributes = "".join(
        f' data-{name}="{html.escape(f"{value:.4f}" if isinstance(value, float) else str(value), quote=True)}"'
        for name, value in data.items()
    )
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())
    return (
        f"<article{attributes}><h3>{html.escape(example.instruction)}</h3>"
        f'<div class="clips">{canvases}<dl>{listed}</dl></div>'
        f'<img alt="" hidden src="{sprite_sheet(list(example.clips.values()))}"></article>'
    )


def _times_section(seconds: Mapping[str, float]) -> str:
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{_duration(value)}</td></tr>" for name, value in seconds.items()
    )
    return f'<section><h2>Time</h2><table class="times"><tbody>{rows}</tbody></table></section>' if rows else ""


def _settings_section(settings: Mapping[str, Any]) -> str:
    parts = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False, default=str)
        parts.append(f"<details><summary>{html.escape(str(name))}</summary><pre>{html.escape(text)}</pre></details>")
    return f"<section><h2>Settings</h2>{''.join(parts)}</section>" if parts else ""


def decibels(value: float | None) -> str:
    """A figure in dB as pages and tables show it."""
    return "–" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"
