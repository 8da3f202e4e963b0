"""Instructions worth training on, in more than one wording."""

from __future__ import annotations

import re
from collections.abc import Sequence

from icve.curation.stage import Outcome, Rejected, Row, RowStage, Workspace

# How an instruction may be put, and other ways to say the same. {a} and {b} are the user's words; a form whose
# preposition is among them is left out, since "replace the man with a hat with a dog" can be read two ways.
_PLACE = r"(?:on|onto|in|into|under|behind|beside|near|above|below|next to|in front of|between|at|over|around)"
_NOT_TO = r"(?!.*\bto\b(?! the (?:left|right)))"  # "add a dog to the sofa" goes with no other verb
_COLOURS = "red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|grey|gray|golden|gold|silver|turquoise"
_FORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"(?:replace|swap out|exchange) (?P<a>.+) with (?P<b>.+)",
        (
            "replace {a} with {b}",
            "change {a} into {b}",
            "turn {a} into {b}",
            "swap {a} for {b}",
            "exchange {a} for {b}",
            "switch {a} to {b}",
            "substitute {b} for {a}",
        ),
    ),
    (
        r"(?:swap|exchange) (?P<a>.+) for (?P<b>.+)",
        ("replace {a} with {b}", "change {a} into {b}", "turn {a} into {b}", "swap {a} for {b}"),
    ),
    (
        r"(?:change|turn|transform|convert) (?P<a>.+) into (?P<b>.+)",
        ("change {a} into {b}", "turn {a} into {b}", "transform {a} into {b}", "convert {a} into {b}"),
    ),
    (
        r"(?:change|alter|modify|switch) (?P<a>.+) to (?P<b>.+)",
        ("change {a} to {b}", "alter {a} to {b}", "modify {a} to {b}", "switch {a} to {b}"),
    ),
    (
        rf"(?:make|turn|paint|colou?r|dye) (?P<a>.+) (?P<b>(?:(?:light|dark|bright|deep) )?(?:{_COLOURS}))",
        ("make {a} {b}", "turn {a} {b}", "colour {a} {b}", "change the colour of {a} to {b}"),
    ),
    (
        rf"(?:add|place|put|insert) {_NOT_TO}(?P<a>.+?) (?P<b>{_PLACE} .+)",
        ("add {a} {b}", "place {a} {b}", "put {a} {b}", "insert {a} {b}"),
    ),
    (
        rf"(?:add|insert|include|introduce) {_NOT_TO}(?P<a>.+)",
        ("add {a}", "insert {a}", "include {a}", "introduce {a}"),
    ),
    (
        r"(?:remove|delete|erase|eliminate|take away) (?P<a>.+)",
        ("remove {a}", "delete {a}", "erase {a}", "eliminate {a}", "get rid of {a}"),
    ),
    (
        r"(?:pan|move|swing|turn) the camera (?P<a>(?:to the )?(?:left|right).*)",
        ("pan the camera {a}", "move the camera {a}", "swing the camera {a}"),
    ),
    (r"(?:move|shift|relocate) (?P<a>.+)", ("move {a}", "shift {a}")),
    (r"(?:enlarge|magnify) (?P<a>.+)", ("enlarge {a}", "magnify {a}", "make {a} larger", "make {a} bigger")),
    (r"(?:shrink) (?P<a>.+)", ("shrink {a}", "make {a} smaller")),
)
_JOINTS = re.compile(r"\b(?:and|then|while)\b|[,;:.]")


class RewriteVerbs(RowStage):
    """Says what an instruction says with another verb (ICVE, clip pairs: the action verb is rewritten by synonyms).

    "Replace A with B" becomes "Change A into B", "Swap A for B" and the like: the words around the verb change with it.
    What fits no known form, or could be read in two ways, stays as it is.

    Reads ``instruction``; changes it, and adds ``instruction_original``.

    Args:
        probability: share of the instructions that are rewritten, where a form is known.
        seed: selects other ones.
    """

    def __init__(self, probability: float = 0.5, seed: int = 0) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be within 0..1, not {probability}.")
        self.probability, self.seed = probability, seed

    def outcome(self, row: Row, work: Workspace) -> Row:
        random, original = self.random(row, self.seed), row["instruction"]
        wordings = rewordings(original)
        rewrite = random.random() < self.probability and wordings
        instruction = wordings[random.integers(len(wordings))] if rewrite else original
        return row | {"instruction": instruction, "instruction_original": original}


class DropTrivial(RowStage):
    """Drops instructions that only change tones: brightness, contrast, saturation and their kin (ICVE, clip pairs).

    Reads ``instruction``. It is trivial where it speaks of tones and of nothing else but the picture as a whole: "make
    it brighter" is, "add a bright lamp" and "make the dress darker" are not.
    """

    def outcome(self, row: Row, work: Workspace) -> Outcome:
        return Rejected("trivial instruction", row["instruction"]) if is_trivial(row["instruction"]) else row


def rewordings(instruction: str) -> list[str]:
    """Other ways to give an instruction, in a fixed order, without the original; empty where none is known."""
    match = re.fullmatch(r"(?P<please>please )?(?P<text>.*?)(?P<end>[.!]*)", instruction.strip(), re.I | re.S)
    assert match is not None  # it takes any text
    text = match["text"].strip()
    for pattern, forms in _FORMS:
        if (parts := re.fullmatch(pattern, text, re.I | re.S)) is None:
            continue
        found = parts.groupdict()
        if _clashes(pattern, found):
            return []
        # In a form that turns them round, all that follows {b} would come before {a}.
        joined = _JOINTS.search(found.get("b") or "") is not None
        wordings = []
        for form in forms:
            wording = form.format(**found)
            turned = "{b}" in form and not form.endswith("{b}")
            if wording.lower() == text.lower() or (joined and turned) or _clashes(form, found):
                continue
            capital = text[0].isupper() and not match["please"]
            wording = wording[0].upper() + wording[1:] if capital else wording
            wordings.append((match["please"] or "") + wording + match["end"])
        return wordings
    return []


def _clashes(form: str, found: dict[str, str]) -> bool:
    """Whether a preposition that stands between the two parts of a form, or of a pattern, is also in one of them."""
    words = [word for word in ("with", "for", "into", "to") if re.search(rf"[)}}] {word} [({{]", form)]
    return any(re.search(rf"\b{word}\b", part, re.I) for word in words for part in found.values())


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TONES = _words(
    "bright brighter brighten brightens brightening brightness dark darker darken darkens darkening darkness dim "
    "dimmer lighter lighten lightness luminance luminosity contrast contrasted contrasty saturation saturate saturated "
    "saturating desaturate desaturated desaturation exposure exposed overexpose overexposed underexpose underexposed "
    "gamma hue hues vivid vibrant vibrance vibrancy muted faded washed warmer cooler warmth sharp sharper sharpen "
    "sharpness crisp crisper clarity"
)
# Words that name the picture as a whole, or how much, and so say nothing that a tone does not.
_FILLERS = _words(
    "a an the it its this that these all of in to by with and or so up down out more less much very slightly bit "
    "little lot somewhat significantly a-bit too even overall whole entire everything everywhere video image picture "
    "frame frames scene footage clip shot photo make makes making be is become look looks appear have has give get "
    "increase increased increasing decrease decreased decreasing reduce reduced reducing raise raised lower lowered "
    "boost boosted enhance enhanced adjust adjusted change changed improve improved strengthen weaken turn set add "
    "apply colour colours color colors colored coloured tone tones tonal temperature balance white level levels light "
    "lighting lights lightings shadows highlights value values percent high higher low please can you then only just "
    "noticeably considerably gently subtly dramatically strongly"
)


def is_trivial(instruction: str) -> bool:
    """Whether an instruction speaks of tones of the picture as a whole and of nothing else."""
    words: Sequence[str] = re.findall(r"[a-z]+", instruction.lower())
    return any(word in _TONES for word in words) and all(word in _TONES or word in _FILLERS for word in words)
