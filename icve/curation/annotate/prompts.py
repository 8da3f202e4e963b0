"""What a model is asked about a pair of clips, and what its answer must be like (ICVE, unpaired clip data)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

# How letters of a language are called in Unicode, as the beginnings of their names.
SCRIPTS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("English", "French", "German", "Italian", "Portuguese", "Spanish"), ("LATIN",)),
    "Russian": ("CYRILLIC",),
    "Chinese": ("CJK",),
    "Japanese": ("CJK", "HIRAGANA", "KATAKANA"),
    "Korean": ("HANGUL",),
}

# An instruction speaks of what is seen, not of the pictures that were shown.
BANNED = (
    *("frame", "image", "video", "footage", "screenshot", "clip"),
    *("left half", "right half", "left panel", "right panel", "left picture", "right picture", "left photo"),
    *("right photo", "side by side", "divider", "before and after", "original version", "edited version"),
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that English sentences cannot do without; one of them tells English from its neighbours in the same script.
_ENGLISH = _words(
    "a an the this that these those his her its their my your of to in on at by with from into onto over under behind "
    "beside near for and or as so out off up down away all both it them him is are be more less while toward towards "
    "around across through between above below left right forward backward closer"
)
# How sentences begin that tell or excuse instead of asking for something.
_NO_IMPERATIVE = _words(
    "a an the this that these those there here it he she they we i you his her its their my our your no not yes in on "
    "at with from to of as by for while since because and but or if so then when sorry unfortunately both each all "
    "some one two three what which who why how instruction answer sure okay certainly ok is are was were has had "
    "does did can could would should will may might cannot nothing none"
)
_ING = _words("bring swing string fling cling spring ring sing sling sting wing king")
_ED = _words("feed speed seed embed shed wed bed heed weed bleed shred")


def change_prompt(pairs: int, language: str = "English") -> str:
    """The question about ``pairs`` pictures that each show the clip before (left) and after (right) a change."""
    shown = (
        "You see a picture made of two parts with a white bar between them"
        if pairs == 1
        else f"You see {pairs} pictures, in order of time, each made of two parts with a white bar between them"
    )
    return (
        f"{shown}. What is left of the bar shows a scene before a change, what is right of it shows the scene after "
        "the change.\n"
        "Find the most significant change: something added, removed, replaced, moved or recoloured, an action, the "
        "background, the style, or the camera's position, direction or distance. Ignore noise, compression and small "
        "differences in brightness, contrast and saturation.\n"
        "Write the one instruction that somebody would give to an editor to get from the left to the right.\n"
        f"- One concise sentence in {language}, at most 25 words, that begins with a verb, such as Add, Remove, "
        "Replace, Turn, Move or Zoom.\n"
        "- Name what is meant by its looks or place in the scene, so that it cannot be mistaken.\n"
        "- Speak of the scene only, never of the parts, the bar, frames, images, clips or videos.\n"
        "Answer with the instruction and nothing else."
    )


def clean(answer: str) -> str:
    """An answer as an instruction: without quotes, label or list mark, with a capital letter and a full stop."""
    text = answer.strip()
    text = re.sub(r"^(?:\*\*)?(?:edit(?:ing)? )?instruction(?:\*\*)?\s*:(?:\*\*)?\s*", "", text, flags=re.IGNORECASE)
    text = re.sub(r"^[-*•]\s+", "", text).strip("\"'“”‘’«»`* \t")
    text = re.sub(r"[ \t]+", " ", text)
    if not text:
        return ""
    text = text[0].upper() + text[1:]
    return text if unicodedata.category(text[-1]) == "Po" else f"{text}."


def instruction_check(
    language: str = "English",
    banned: Sequence[str] = BANNED,
    min_characters: int = 6,
    max_characters: int = 200,
) -> Callable[[str], str | None]:
    """What makes an answer an instruction: one sentence in a language, of a length, without banned words.

    Args:
        language: a key of ``SCRIPTS``. English answers must also be in the imperative.
        banned: words and phrases, lower case, that may not occur (nor their plurals).
        min_characters, max_characters: bounds of its length.

    Returns:
        A check for ``Question``: what is wrong with an answer, or None.

    Raises:
        ValueError: an unknown language.
    """
    if language not in SCRIPTS:
        raise ValueError(f"language is one of {', '.join(SCRIPTS)}, not {language!r}.")
    words = "|".join(re.escape(word).replace(r"\ ", r"[\s-]+") for word in banned)
    pattern = re.compile(rf"\b(?:{words})s?\b", re.IGNORECASE) if banned else None

    def check(answer: str) -> str | None:
        text = clean(answer)
        if not any(character.isalpha() for character in text):
            return "The answer is empty."
        if "\n" in text or len(re.findall(r"[.!?。！？](?=\s+\S|[^\s.\d]|$)", text)) > 1:
            return "It is not one single sentence."
        if text.endswith("?"):
            return "It is a question, not an instruction."
        if not min_characters <= len(text) <= max_characters:
            return f"It has {len(text)} characters, not between {min_characters} and {max_characters}."
        if pattern is not None and (found := pattern.search(text)):
            return f"It says {found.group()!r}: speak of the scene only."
        if not _written_in(text, language):
            return f"It is not written in {language}."
        if language == "English":
            return _english_problem(text)
        return None

    return check


def _written_in(text: str, language: str) -> bool:
    """Whether letters are of the language's script. Names in Latin letters are at home in every other one."""
    letters = [unicodedata.name(character, "") for character in text if character.isalpha()]
    own = sum(name.startswith(SCRIPTS[language]) for name in letters)
    return 2 * own > len(letters) and all(name.startswith((*SCRIPTS[language], "LATIN")) for name in letters)


def _english_problem(text: str) -> str | None:
    words = [word.strip("'’").lower() for word in re.findall(r"[^\W\d_]+(?:['’-][^\W\d_]+)*", text)]
    first = words[1] if words[0] == "please" and len(words) > 1 else words[0]
    no_imperative = (
        first in _NO_IMPERATIVE
        or "'" in first
        or "’" in first
        or (first.endswith("ing") and first not in _ING)
        or (first.endswith("ed") and first not in _ED)
        or (first.endswith("s") and not first.endswith(("ss", "us")))
    )
    if no_imperative:
        return f"It begins with {first!r}, not with a verb that asks for the change, such as Add, Remove or Replace."
    if len(words) > 3 and not _ENGLISH.intersection(words):
        return "It is not written in English."
    return None
