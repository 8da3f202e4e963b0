"""Which kind of edit an English instruction asks for, by its verb and a few words."""

from __future__ import annotations

import re

_COLOURS = (
    r"(?:red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|cyan|teal|turquoise|magenta|gold"
    r"|golden|silver|beige|maroon|navy|crimson|scarlet|lavender)"
)
_SHADE = r"(?:(?:light|dark|bright|deep|pale|vivid|navy|sky|hot|neon)[\s-])?"
_CHANGE = r"(?:replace|swap|change|substitute|exchange|turn|transform|convert|make|set|switch|alter|modify|transition)"
_STYLE = (
    r"\b(?:style|stylis\w+|styliz\w+|watercolou?rs?|cartoon|anime|sketch|oil painting|pixel art|impressionis\w+"
    r"|cyberpunk|sepia|black[\s-]and[\s-]white|monochrome|comic book|claymation|ukiyo-e|origami|low[\s-]poly)\b"
)

# The first that fits decides, so that "change the background to a red wall" is no recolouring.
_RULES: tuple[tuple[str, str], ...] = (
    ("camera_zoom", r"^(?:zoom|dolly|push in|pull back)\b"),
    ("camera_zoom", r"\bcamera\b.*\b(?:closer|zoom\w*|(?:further|farther) (?:away|back|out)|back)\b"),
    ("camera_pan", r"^(?:pan|tilt|truck|orbit|pedestal)\b|\bcamera\b|\b(?:viewpoint|view|perspective|angle)\b"),
    ("background", rf"^{_CHANGE}\b.{{0,20}}\bbackground\b"),
    ("background", r"^(?:put|place|show|use)\b.*\b(?:in|as) the background$"),
    ("remove", r"^(?:remove|delete|erase|eliminate|get rid|take (?:away|out|off)|clear|strip|omit|hide)\b"),
    ("remove", r"^take\b.*\b(?:away|out|off)$"),
    ("add", r"^(?:add|insert|introduce|include|bring in|put|place|give|attach|overlay|show|equip)\b|\bappear\b"),
    ("style", rf"^{_CHANGE}\b.*{_STYLE}"),
    ("style", rf"^(?:apply|render|draw|paint|stylis\w+|styliz\w+|redraw|use)\b.*{_STYLE}"),
    ("recolour", r"^(?:recolou?r|dye|tint|paint|colou?r)\b|^(?:change|alter|modify|switch)\b.*\bcolou?rs?\b"),
    ("recolour", rf"^(?:make|turn|change)\b.*\b{_SHADE}{_COLOURS}$"),
    ("move", r"^(?:move|shift|slide|lower|raise|lift|reposition|relocate|push|pull|drag|bring)\b"),
    ("replace", r"^(?:replace|swap|substitute|exchange|convert|transform)\b"),
    ("replace", r"^(?:turn|change|switch|make)\b.*\b(?:into|to|for|with)\b"),
)
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _RULES)


def edit_type(instruction: str) -> str:
    """One of camera_zoom, camera_pan, background, remove, add, style, recolour, move, replace, or "other"."""
    text = re.sub(r"^(?:please|now)\s+", "", instruction.strip().lower()).rstrip(" .!")
    return next((name for name, pattern in _COMPILED if pattern.search(text)), "other")
