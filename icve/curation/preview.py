"""`icve curate preview`: a page that shows what a curation run kept and rejected, stage by stage, and why.

One HTML file with everything inside: the funnel with the counts, then samples of every stage as contact sheets.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from icve.curation.part_files import read_part
from icve.curation.preview_pictures import Pictures, Strip
from icve.curation.run_folder import INPUTS, StageCount, load_description
from icve.curation.stage import Rejected, Row, Workspace
from icve.curation.status import run_counts
from icve.runtime.atomic import write_text
from icve.runtime.printable import as_text
from icve.runtime.process_pools import counting_bar
from icve.runtime.storage.remote_path import as_path

PAGE = "preview.html"

_MOST_PARTS = 50  # of a stage that samples are looked for in
_MOST_COLUMNS, _MOST_CHARACTERS = 30, 300  # shown of a row

_STYLE = """
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(540px, 100%), 1fr)); gap: 14px;
  align-items: start; }
.samples article { margin: 0; min-width: 0; border-left: 4px solid var(--good); }
.samples article.rejected { border-left-color: var(--bad); }
.samples h3 small { font-weight: 400; color: var(--soft); }
.samples figure { margin: 0 0 6px; }
.samples img { display: block; max-width: 100%; height: auto; border-radius: 4px; background: var(--line); }
.samples figcaption { padding-top: 3px; font-size: .78rem; line-height: 1.35; color: var(--soft);
  overflow-wrap: anywhere; }
.tile { display: flex; align-items: center; justify-content: center; width: 300px; max-width: 100%; min-height: 84px;
  padding: 8px 14px; border-radius: 4px; background: var(--line); color: var(--soft); font-size: .82rem;
  text-align: center; overflow-wrap: anywhere; }
p.why { margin: 0 0 8px; } .why { color: var(--bad); font-size: .87rem; overflow-wrap: anywhere; }
.samples dl { display: grid; grid-template-columns: auto 1fr; gap: 1px 12px; margin: 6px 0 0; font-size: .8rem; }
.samples dt { color: var(--soft); } .samples dd { margin: 0; overflow-wrap: anywhere; }
.funnel th.why, .funnel td.why { white-space: normal; text-align: left; min-width: 22em; }
.funnel th.why { color: var(--soft); }
.funnel td, .funnel th { vertical-align: top; } .funnel a { color: inherit; }
h3.outcome { margin: 14px 0 8px; }
"""


@dataclass(frozen=True)
class _Stage:
    """A stage of a run: its `counts`, its parameters, and where its parts lie."""

    name: str
    counts: StageCount
    folder: Path
    parameters: Mapping[str, Any] | None


def write_preview(run: Path, samples: int = 6, seed: int = 0) -> Path:
    """Write ``preview.html`` into a run's folder, whole or not at all, and return its path.

    Every stage shows up to ``samples`` rows that it kept and as many that it rejected, of each reason in turn, with
    frames of their clips, the outline of their mask, instruction, reason and detail. All text is escaped, and nothing
    in the page is loaded from elsewhere. A file that cannot be shown is a grey tile with the reason.

    Args:
        run: folder of a run, finished or not.
        samples: rows shown of each kind, at least 1.
        seed: takes other samples.

    Raises:
        FileNotFoundError: the folder is no curation run.
        ValueError: ``samples`` is less than 1.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, not {samples}.")
    run = Path(run)
    description = load_description(run)
    stages, shards = _stages(run, description), list(description["shards"])
    # Files the run wrote lie in the folder it is in now, wherever it was made.
    moved = {description["output"]: run.absolute()}
    source, root = (as_path(moved.get(description[name], description[name])) for name in ("input", "root"))
    pictures, sections = Pictures(Workspace(source, run.absolute(), root)), []
    with counting_bar("Drawing samples", Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(stages))
        for number, stage in enumerate(stages):
            # Of the first rows only those matter that the run could not even begin with.
            if number or stage.counts.rejected:
                rng = np.random.default_rng([seed, number])
                sections.append(_section(number, stage, shards, pictures, samples, rng))
            progress.advance(task)
    title = f"Curation of {source.name}"
    first, last = stages[0].counts, stages[-1].counts
    style = resources.files("icve.evaluation").joinpath("report.css").read_text(encoding="utf-8") + _STYLE
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><p>{first.rows_in} inputs, {last.rows_out} rows at the end; "
        f"{last.shards} of {len(shards)} shards are through all stages.</p></header>"
        f"<main>{_funnel(stages, len(shards))}{''.join(sections)}</main></body></html>"
    )
    return write_text(run / PAGE, as_text(page))


def _stages(run: Path, description: Mapping[str, Any]) -> list[_Stage]:
    """The stages of a run, of which the first stands for its first rows."""
    specs = [{"name": "inputs", "folder": INPUTS, "parameters": None}, *description["stages"]]
    return [
        _Stage(spec["name"], count, run / "stages" / spec["folder"], spec["parameters"])
        for spec, count in zip(specs, run_counts(run)[0], strict=True)
    ]


def _choose(
    stage: _Stage, shards: Sequence[str], samples: int, rng: np.random.Generator
) -> tuple[list[Row], list[tuple[Row, Rejected]]]:
    """Random kept rows, and rejected ones of each reason in turn, out of some of the stage's parts."""
    kept: list[Row] = []
    rejected: dict[str, list[tuple[Row, Rejected]]] = {reason: [] for reason in stage.counts.rejected}
    for shard in rng.permutation(shards)[:_MOST_PARTS]:
        try:
            kept_here, rejected_here = read_part(stage.folder / f"{shard}.parquet")
        except (OSError, pa.ArrowException):
            continue  # not there yet
        kept += kept_here
        for row, why in rejected_here:
            rejected.setdefault(why.reason, []).append((row, why))
        enough = min(samples, sum(stage.counts.rejected.values())) <= sum(map(len, rejected.values()))
        if enough and all(rejected.values()) and len(kept) >= min(samples, stage.counts.rows_out):
            break
    shown = [kept[k] for k in rng.permutation(len(kept))[:samples]]
    turns = zip_longest(*([group[k] for k in rng.permutation(len(group))] for group in rejected.values()))
    return shown, [found for turn in turns for found in turn if found is not None][:samples]


def _funnel(stages: Sequence[_Stage], shards: int) -> str:
    rows = []
    for number, stage in enumerate(stages):
        count = stage.counts
        rejected = sum(count.rejected.values())
        share = count.passed / count.rows_in if count.rows_in else 0.0
        name = html.escape(stage.name)
        linked = f'<a href="#stage-{number}">{name}</a>' if number or rejected else name
        why = "; ".join(f"{html.escape(reason)} {amount}" for reason, amount in count.rejected.items())
        rows.append(
            f"<tr><th>{linked}</th><td>{count.rows_in}</td><td>{rejected}</td><td>{count.passed}</td>"
            f'<td><meter min="0" max="1" value="{share:.4f}"></meter> {share:.0%}</td><td>{count.rows_out}</td>'
            f'<td>{count.shards}/{shards}</td><td class="why">{why}</td></tr>'
        )
    return (
        '<section><h2>Funnel</h2><div class="scroll"><table class="funnel"><thead><tr><th>stage</th><th>in</th>'
        "<th>rejected</th><th>passed</th><th>share</th><th>out</th><th>shards</th>"
        '<th class="why">rejected for</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p class='note'>in = passed + rejected; out is more where rows were cut into several.</p></section>"
    )


def _section(
    number: int, stage: _Stage, shards: Sequence[str], pictures: Pictures, samples: int, rng: np.random.Generator
) -> str:
    kept, rejected = _choose(stage, shards, samples, rng)
    parts = [f'<section id="stage-{number}"><h2>{html.escape(stage.name)}</h2>']
    if stage.parameters:
        text = html.escape(json.dumps(stage.parameters, indent=2, ensure_ascii=False, default=str))
        parts.append(f"<details><summary>parameters</summary><pre>{text}</pre></details>")
    kept = kept if number else []  # of the first rows only those matter that the run could not begin with
    total = sum(stage.counts.rejected.values())
    for title, amount, cards in (
        ("Kept", stage.counts.rows_out, [_card(row, pictures) for row in kept]),
        ("Rejected", total, [_card(row, pictures, why) for row, why in rejected]),
    ):
        if cards:
            heading = f'<h3 class="outcome">{title}: {len(cards)} of {amount}</h3>'
            parts += [heading, '<div class="samples">', *cards, "</div>"]
    if not kept and not rejected:
        parts.append("<p class='absent'>No rows yet.</p>")
    return "".join([*parts, "</section>"])


def _card(row: Row, pictures: Pictures, why: Rejected | None = None) -> str:
    heading = row.get("instruction") or row.get("video") or row.get("source_path") or row.get("key") or ""
    reason = ""
    if why is not None:
        detail = f": {html.escape(why.detail)}" if why.detail else ""
        reason = f'<p class="why"><b>{html.escape(why.reason)}</b>{detail}</p>'
    kind = f" <small>{html.escape(str(row['edit_type']))}</small>" if row.get("edit_type") else ""
    listed = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in _columns(row))
    return (
        f'<article class="{"kept" if why is None else "rejected"}"><h3>{html.escape(str(heading))}{kind}</h3>{reason}'
        f"{''.join(map(_figure, pictures.strips(row, why)))}"
        f"<details><summary>row</summary><dl>{listed}</dl></details></article>"
    )


def _figure(strip: Strip) -> str:
    caption = html.escape(strip.caption)
    if strip.picture is None:
        return f'<div class="tile">{caption}</div>'
    size = f'width="{strip.width}" height="{strip.height}"'
    return f'<figure><img alt="" {size} src="{strip.picture}"><figcaption>{caption}</figcaption></figure>'


def _columns(row: Row) -> Iterator[tuple[str, str]]:
    for name, value in list(row.items())[:_MOST_COLUMNS]:
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
        yield name, text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"
