"""Label: what in a clip could be edited, as a vision-language model sees it (ICVE, paired data, first step)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from icve.curation.annotate.asking import AskingStage
from icve.curation.edit_pairs.frames import clip_of, spread
from icve.curation.edit_pairs.parse_json import fault_of, parse_json
from icve.curation.edit_pairs.requests import EDITS, Layer
from icve.curation.stage import Outcome, Rejected, Row, Workspace
from icve.curation.vision_language import Answer, Question, VisionLanguageModel

MOST_WORDS = 8  # of a phrase: detectors lose longer ones
_ARTICLE = re.compile(r"^(a|an|the) (?=.)", re.IGNORECASE)

PROMPT = f"""These pictures are moments of one video, in order. List what an editor could change in it, the most
noticeable things first, at most twelve. Answer with JSON only, in this form:
{{"items": [{{"phrase": "woman in a yellow coat", "layer": "foreground", "clear": true}}]}}
phrase: a noun phrase of at most {MOST_WORDS} words without article that tells the thing from everything else in the
video by what it is and how it looks.
layer: "foreground" for persons, animals, vehicles and objects; "background" for parts of the surroundings such as
the sky, a wall, the floor, mountains.
clear: false for whatever a few words could not single out or nobody could cut out cleanly: crowds, one of many alike,
tiny, blurred or mostly hidden things, things there for a moment only, smoke, shadows, reflections, overlaid text."""


@dataclass(frozen=True)
class Item:
    """A thing in a clip. `clear`: a few words single it out and it can be cut out."""

    phrase: str
    layer: Layer
    clear: bool


def parse_items(text: str) -> list[Item]:
    """The items of an answer to `PROMPT`, each phrase once.

    Raises:
        ValueError: it has another form, in a sentence that the model can be told.
    """
    answer = parse_json(text)
    entries = answer.get("items") if isinstance(answer, dict) else answer
    if not isinstance(entries, list):
        raise ValueError('The answer must be a JSON object with the list "items".')
    items: dict[str, Item] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not {"phrase", "layer", "clear"} <= entry.keys():
            raise ValueError('Every item must have "phrase", "layer" and "clear".')
        phrase, layer, clear = entry["phrase"], entry["layer"], entry["clear"]
        if not isinstance(phrase, str) or not phrase.strip(" ."):
            raise ValueError("Every phrase must be text.")
        if layer not in ("foreground", "background"):
            raise ValueError(f'The layer must be "foreground" or "background", not {layer!r}.')
        if not isinstance(clear, bool):
            raise ValueError(f"clear must be true or false, not {clear!r}.")
        phrase = _ARTICLE.sub("", " ".join(phrase.split()).strip(" ."))
        if len(phrase.split()) > MOST_WORDS:
            raise ValueError(f"The phrase {phrase!r} is too long: use at most {MOST_WORDS} words.")
        items.setdefault(phrase.casefold(), Item(phrase, layer, clear))
    return list(items.values())


check_items = partial(fault_of, parse_items)  # what is wrong with an answer, or None


class Label(AskingStage):
    """One row per thing in the clip and edit to make of it.

    Reads `source_path` (`source_start`, `source_frames`); writes `object` (a phrase without article), `layer`
    ("foreground" or "background") and `edit_type` (a name of `icve.curation.edit_pairs.requests.EDITS`). Things that
    are hard to describe or to cut out are dropped; a clip with none left is rejected as "nothing to edit", one that the
    model gave no usable answer for as "no labels".

    Args:
        model: the vision-language model; it sees `frames` pictures.
        edits: kinds of edits; each is made of things of its own layer.
        most_items: most things per clip, the most noticeable first.
        edits_per_item: most edits per thing, drawn at random from those of its layer. Each costs an inpainting.
        frames: pictures shown, spread evenly over the clip.
        seed: of the draw.
        batch_size: clips per call of the model.

    Raises:
        ValueError: an edit is unknown or a number out of range.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        edits: Sequence[str] = tuple(EDITS),
        most_items: int = 4,
        edits_per_item: int = 1,
        frames: int = 3,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        if unknown := sorted(set(edits) - EDITS.keys()):
            raise ValueError(f"There is no edit {unknown[0]!r}; choose from {', '.join(EDITS)}.")
        if not edits or min(most_items, edits_per_item, frames, batch_size) < 1:
            raise ValueError("Label needs an edit, and at least 1 item, edit per item, frame and row per batch.")
        super().__init__(model, batch_size)
        self.edits, self.most_items, self.edits_per_item = tuple(edits), most_items, edits_per_item
        self.frames, self.seed = frames, seed

    def __call__(self, rows: list[Row], work: Workspace) -> list[Outcome]:
        questions = []
        for row in rows:
            clip = clip_of(row, work)
            pictures = tuple(clip.read(spread(clip.frames, self.frames)))
            questions.append(Question(PROMPT, pictures, check_items, max_tokens=768))
        return [self._outcome(row, answer) for row, answer in zip(rows, self.ask(questions, work), strict=True)]

    def _outcome(self, row: Row, answer: Answer) -> Outcome:
        if answer.text is None:
            return Rejected("no labels", answer.error, answer.transient)
        items = parse_items(answer.text)
        rng, labelled = self.random(row, self.seed), []
        for item in [item for item in items if item.clear and self._edits(item)][: self.most_items]:
            possible = self._edits(item)
            for number in sorted(rng.permutation(len(possible))[: self.edits_per_item]):
                edit = {"object": item.phrase, "layer": item.layer, "edit_type": possible[number]}
                labelled.append({**row, **edit})
        if not labelled:
            dropped = ", ".join(item.phrase for item in items) or "none at all"
            return Rejected("nothing to edit", f"things seen, each unclear or of another layer: {dropped}")
        return labelled

    def _edits(self, item: Item) -> list[str]:
        return [name for name in self.edits if EDITS[name].layer == item.layer]
