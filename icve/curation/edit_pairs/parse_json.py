"""JSON that a language model was asked for, as it comes: bare, in a code block, or with words around it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any


def fault_of(parse: Callable[[str], object], text: str) -> str | None:
    """What is wrong with an answer, in a sentence for the model: the ValueError that ``parse`` raises, or None."""
    try:
        parse(text)
    except ValueError as error:
        return str(error)
    return None


def parse_json(text: str) -> Any:
    """The JSON object or list in an answer.

    Raises:
        ValueError: there is none, in a sentence that the model can be told.
    """
    # From the first bracket on: models put "Here is ..." or a code fence before, and "```" behind.
    start = re.search(r"[{\[]", text)
    if start is not None:
        try:
            return json.JSONDecoder().raw_decode(text, start.start())[0]
        except (json.JSONDecodeError, RecursionError):
            pass
    raise ValueError("The answer is not JSON.")
