"""HTML from the templates in this folder."""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def render(template: str, **values: Any) -> Markup:
    """A template of this folder, filled in. Its line breaks and indentation are left out, and every text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_escaped)
    environment.filters |= {"decibels": decibels, "percent": "{:.0%}".format, "duration": _duration}
    environment.globals["asset"] = lambda name: Markup(_read(name))
    text = "".join(line.strip() for line in _read(template).splitlines())
    return Markup(environment.from_string(text).render(**values))


def decibels(value: float | None) -> str:
    """A figure in dB as pages and tables show it."""
    return "–" if value is None else f"{value:.1f}"


def _duration(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"


def _read(name: str) -> str:
    return resources.files("icve.evaluation").joinpath(name).read_text(encoding="utf-8")


def _escaped(value: object) -> Markup:
    """As the standard library escapes text; what is HTML already stays."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))
