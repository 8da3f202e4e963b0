"""HTML from the templates in this folder."""

from __future__ import annotations

import html
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup


def asset(name: str) -> Markup:
    """A file of this folder, as it is."""
    return Markup(resources.files("icve.evaluation").joinpath(name).read_text(encoding="utf-8"))


def render(template: str, **values: Any) -> Markup:
    """A template of this folder, filled in. Its line breaks and indentation are left out, and every text is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, finalize=_escaped)
    text = "".join(line.strip() for line in asset(template).splitlines())
    return Markup(environment.from_string(str(text)).render(**values))


def _escaped(value: object) -> Markup:
    """As the standard library escapes text; what is HTML already stays."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))
