"""Which published weights an editor contains or was made from, and their licences, written beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from torch import nn

from icve.models.families import family_of
from icve.models.family import Base
from icve.runtime.atomic import write_text

FILE = "base_weights.json"


def bases_of(parts: Iterable[nn.Module | None]) -> list[Base]:
    """The published weights behind parts of an editor, each once."""
    families = [family_of(part) for part in parts if part is not None]
    return list(dict.fromkeys(base for family in families if family is not None for base in family.bases))


def write_bases(folder: str | os.PathLike, bases: Sequence[Base]) -> None:
    """Record them in an editor's folder: a JSON list of name, link and terms, empty where there are none."""
    text = json.dumps([asdict(base) for base in bases], indent=2, ensure_ascii=False)
    write_text(Path(folder) / FILE, text + "\n")


def read_bases(folder: str | Path) -> list[Base] | None:
    """What is recorded in an editor's folder, or the one above it; None where nothing is.

    Raises:
        ValueError: the record is damaged.
    """
    for place in (Path(folder), Path(folder).parent):
        if (file := place / FILE).is_file():
            try:
                return [Base(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]
            except (ValueError, TypeError) as error:
                raise ValueError(f"'{file}' is damaged ({error}): copy the folder again.") from error
    return None


def card(title: str, bases: Sequence[Base]) -> str:
    """A model card in Markdown: what it is, how it is run, and the licences of what it was made from."""
    head = ["---", "library_name: icve", "tags:", "- video-editing"]
    if bases:
        head += ["license: other", f"license_name: {_slug(bases[0].name)}", f"license_link: {bases[0].link}"]
    lines = [*head, "---", "", f"# {title}", "", "An instruction-based video editor.", ""]
    lines += ["```", "icve edit --model FOLDER --input clip.mp4 --instruction INSTRUCTION --output out", "```", ""]
    if bases:
        lines += ["It contains or was made from these weights, whose terms hold for it:", ""]
        lines += [f"- [{base.name}]({base.link}): {base.terms}" for base in bases]
    else:
        lines += ["It was made from no published weights."]
    return "\n".join(lines) + "\n"


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
