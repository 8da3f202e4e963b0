"""Tables of figures, for a terminal, Markdown, LaTeX and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from icve.evaluation.templates import render

MISSING = "-"
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class Table(NamedTuple):
    """Cells as text; the first column names the rows."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Aligned, for a terminal."""
        lines = [self.headings, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headings))]
        return "\n".join(_aligned(line, widths, "  ").rstrip() for line in lines)

    def markdown(self) -> str:
        """A table of GitHub's Markdown."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.headings, *self.rows)]
        lines.insert(1, ["---", *["---:"] * (len(self.headings) - 1)])
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def latex(self) -> str:
        """A tabular of the package booktabs."""
        head, *rows = (
            " & ".join(cell.translate(_LATEX) for cell in line) + r" \\" for line in (self.headings, *self.rows)
        )
        columns = "l" + "r" * (len(self.headings) - 1)
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])

    def html(self) -> Markup:
        """For a page, with every text escaped."""
        return render("table.html.jinja", headings=self.headings, rows=self.rows)


def summary_tables(summary: Mapping[str, Any]) -> list[Table]:
    """Of :func:`icve.evaluation.summary.summarise`: all edits, with a line per figure; then, if there are edit types,
    the means of each, and in brackets the number of edits that they are of."""
    rows = []
    for name, figure in summary["figures"].items():
        low_high = number_range(figure["interval"])
        share = f"{figure['count']} of {summary['edits']}"
        rows.append([name, figure["better"], number(figure["mean"]), low_high, share, number(figure.get("pooled"))])
    tables = [Table(["figure", "better", "mean", "95 % interval", "of edits", "pooled"], rows)]
    kinds = summary["per_edit_type"]
    if kinds:
        cells = [[name, *(_of(kind["figures"].get(name)) for kind in kinds.values())] for name in summary["figures"]]
        tables.append(Table(["figure", *(f"{name} (of {kind['edits']})" for name, kind in kinds.items())], cells))
    return tables


def number(value: float | None) -> str:
    """Four digits."""
    return MISSING if value is None else f"{value:.4g}"


def number_range(interval: Sequence[float] | None) -> str:
    """An interval, as in "0.25 to 0.31"."""
    return MISSING if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def _of(figure: Mapping[str, Any] | None) -> str:
    return MISSING if figure is None or not figure["count"] else f"{number(figure['mean'])} ({figure['count']})"


def _aligned(line: Sequence[str], widths: Sequence[int], gap: str) -> str:
    first, *others = zip(line, widths, strict=True)
    return gap.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])
