"""Edit types of this project from the names of other sets' tasks and, where those say little, from instructions."""

from __future__ import annotations

import re

EDIT_TYPES = ("add", "remove", "replace", "recolour", "background", "style")
OTHER = "other"

# Tasks that are edits of one type, by their names without digits and endings.
_TYPES = {
    "obj_removal": "remove",
    "object_removal": "remove",
    "local_remove": "remove",
    "obj_swap": "replace",
    "object_swap": "replace",
    "obj_add": "add",
    "obj_addition": "add",
    "local_add": "add",
    "background_change": "background",
    "background_replace": "background",
    "bg_change": "background",
    "global_style": "style",
    "style_transfer": "style",
    "local_style_transfer": "style",
    "sim2real": "style",
    # Pairs that are no edit of what is seen, or whose camera or story changes.
    "grounding": OTHER,
    "inpainting": OTHER,
    "outpainting": OTHER,
    "controlable": OTHER,
    "subtitles": OTHER,
    "camera": OTHER,
    "creative": OTHER,
} | {name: name for name in (*EDIT_TYPES, OTHER)}
_IF_UNCLEAR = {"local_change": "replace"}
_ENDINGS = re.compile(r"(_?\d+|_upload\d*|_videos|_edit|_data_configs|_multi_shot)$")

_STYLE = re.compile(r"\b(style|styli[sz]e|restyle)", re.I)
_LOOK = re.compile(
    r"\b(anime|cartoon|comic|sketch|pixel[ -]art|water-?colou?r|oil[ -]paint|painting|clay|origami|ghibli|cyberpunk"
    r"|noir|monochrome|black[- ]and[- ]white|lego|3d render)",
    re.I,
)
_REMOVE = re.compile(r"\b(remove|delete|erase|eliminate|take away|get rid of|omit)\b", re.I)
_ADD = re.compile(r"\b(add|insert|place|put|introduce|include|overlay|attach)\b", re.I)
_CHANGE = re.compile(
    r"\b(replace|swap|substitute|exchange|change|turn|transform|convert|make|alter|modify|switch|set)\b", re.I
)
_BACKGROUND = re.compile(r"\b(background|backdrop)\b", re.I)
_COLOUR = re.compile(
    r"\b(re)?colou?r(ed|s)?\b|\b(recolou?r|dye|paint|make|turn|change)\b.*\b(red|orange|yellow|green|blue|purple"
    r"|violet|pink|brown|black|white|gr[ae]y|golden|silver|beige|teal|turquoise|crimson)[.!]?$",
    re.I | re.S,
)
_REPLACE = re.compile(
    r"\b(replace|swap|substitute|exchange)\b|\b(change|turn|transform|convert|switch)\b.*\b(to|into|with|for)\b",
    re.I | re.S,
)


def edit_type(task: str, instruction: str) -> str:
    """One of add, remove, replace, recolour, background, style and other.

    Args:
        task: name of the set's own task or category, as in "obj_removal_videos_upload" or "Local Change"; may be empty.
        instruction: decides where the task is unknown or covers several types ("local", "global_freeform").
    """
    name = task_name(task)
    if name in _TYPES:
        return _TYPES[name]
    found = _type_of_instruction(instruction)
    return _IF_UNCLEAR.get(name, OTHER) if found == OTHER else found


def task_name(task: str) -> str:
    """A task's name in lower case, with underscores, and without the numbers and endings of folders."""
    name = re.sub(r"\W+", "_", task.strip().lower()).strip("_")
    while (shorter := _ENDINGS.sub("", name)) not in (name, ""):
        name = shorter
    return name


def _type_of_instruction(instruction: str) -> str:
    text = instruction.strip()
    if _STYLE.search(text):
        return "style"
    verbs = {kind: match.start() for kind, verb in _VERBS.items() if (match := verb.search(text))}
    first = min(verbs, key=verbs.__getitem__, default=OTHER)
    if first != "change":
        return first
    if _BACKGROUND.search(text):
        return "background"
    if _COLOUR.search(text):
        return "recolour"
    if _LOOK.search(text):
        return "style"
    return "replace" if _REPLACE.search(text) else OTHER


_VERBS = {"remove": _REMOVE, "add": _ADD, "change": _CHANGE, "recolour": re.compile(r"\b(recolou?r|dye)\b", re.I)}
