"""True paired edits of a real clip, made by image processing alone: what changes is known to the pixel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from icve.curation.edit_pairs.clean_plate import clean
from icve.curation.edit_pairs.clip_motion import ClipMotion, clip_motion
from icve.curation.edit_pairs.copied_object import copy_aside
from icve.curation.edit_pairs.offline_wording import STYLE_PHRASES, indefinite, instruction, noun, place_of
from icve.curation.edit_pairs.recolour import BACKGROUNDS, change_background, found_elsewhere, recolour, strong_colour
from icve.curation.edit_pairs.style_filters import STYLES, apply_style
from icve.curation.stage import Outcome, Rejected, Row, Stage, Workspace
from icve.data.masks import load_mask, save_mask
from icve.data.media.video import read_frames, write_video

KINDS = ("remove", "copy", "recolour", "background", "style")

_ELSEWHERE = 0.1  # share of a colour outside a thing beyond which the colour does not single the thing out


@dataclass(frozen=True)
class Scene:
    """A clip to edit: frames (F, H, W, 3) uint8, and the mask bool (F, H, W) of its clear thing, empty without one."""

    frames: np.ndarray
    mask: np.ndarray
    row: Row

    @cached_property
    def motion(self) -> ClipMotion:
        """Its motion, which only some edits need."""
        return clip_motion(self.frames)


@dataclass(frozen=True)
class Edit:
    """One edited clip, and what turning the clip into it, or it into the clip, is called.

    Attributes:
        kind: which edit, for its file's name and the column `edit`.
        frames: (F, H, W, 3) uint8.
        mask: bool (F, H, W), what changes; None for everything.
        edit_type, instruction: from the clip to the edited clip.
        back_type, back_instruction: from the edited clip to the clip, where that is an edit people ask for.
    """

    kind: str
    frames: np.ndarray
    mask: np.ndarray | None
    edit_type: str
    instruction: str
    back_type: str = ""
    back_instruction: str = ""


class OfflineEdits(Stage):
    """Edits a clip in several ways and keeps those without visible faults.

    - remove: the thing's place is filled with what other frames see there; backwards that is an "add" whose target is
      the real clip.
    - copy: the thing stands a second time beside itself ("add"); backwards a "remove" whose target is the real clip.
    - recolour: the thing's main colour becomes another, or without such a thing, one colour of the whole picture.
    - background: everything but the thing becomes black and white, blurred or dark.
    - style: the whole clip is drawn, painted or printed.

    Reads `source_path`, `source_frames`, `fps`, `width`, `height`, and from `OfflineMasks` `mask_path`,
    `mask_leftover`, `object`, `object_colour` and `object_kind` (without a clear thing only recolour and style remain).
    Gives a row for every edit, with `source_path`, `target_path` (one of the two is the clip, the other
    `targets/<key>-<edit>.mp4`), `target_start` (0), `target_frames`, `instruction`, `edit_type` ("add", "remove",
    "recolour", "background", "style"), `edit` ("remove", "copy", "recolour", or which look or style), `mask_path` (what
    changes; None for styles, which change everything), `changed` (mean difference there, 0..255) and `edits_refused`
    (other edits, each with its reason).

    Args:
        kinds: which of the edits to make.
        styles: how many styles per clip, chosen at random.
        min_change: least mean difference, 0..255, between source and target where they are to differ.
        max_unseen: most of a removed thing's place that no frame shows, 0..1.
        max_misfit: most that frames around a removed thing may differ from the scene they are filled from, 0..255.
        max_seam: most edge along the filling's border, relative to the edges around.
        max_leftover: most of a thing's surroundings that may move as it does (`MaskQuality.leftover`) for it to be
            copied or set off from its background.
        crf: x264 quality of the files, that of the sources.
        seed: other styles, paints, looks and words.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        kinds: list[str] | None = None,
        styles: int = 2,
        min_change: float = 6.0,
        max_unseen: float = 0.1,
        max_misfit: float = 7.0,
        max_seam: float = 1.6,
        max_leftover: float = 0.08,
        crf: int = 10,
        seed: int = 0,
    ) -> None:
        self.kinds = KINDS if kinds is None else tuple(kinds)
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"OfflineEdits makes {', '.join(KINDS)}, not {', '.join(sorted(unknown))}.")
        if not 1 <= styles <= len(STYLES):
            raise ValueError(f"OfflineEdits has {len(STYLES)} styles, of which a clip can get 1 or more, not {styles}.")
        if min(min_change, max_misfit, max_seam, max_leftover) < 0 or not 0 <= max_unseen <= 1 or not 0 <= crf <= 51:
            raise ValueError("OfflineEdits needs limits of at least 0, max_unseen in 0..1 and crf in 0..51.")
        self.styles, self.min_change, self.max_unseen = styles, min_change, max_unseen
        self.max_misfit, self.max_seam, self.max_leftover = max_misfit, max_seam, max_leftover
        self.crf, self.seed = crf, seed

    def seconds(self, row: Row) -> float:
        return 120.0 + 4e-6 * row["source_frames"] * row["width"] * row["height"]

    def __call__(self, rows: list[Row], work: Workspace) -> Sequence[Outcome]:
        return [self._edit(row, work) for row in rows]

    def _edit(self, row: Row, work: Workspace) -> Outcome:
        frames = read_frames(work.file(row, "source_path"), start=row["source_start"], count=row["source_frames"])
        mask = load_mask(work.file(row, "mask_path")) if row.get("mask_path") else np.zeros(frames.shape[:3], bool)
        scene = Scene(frames, mask, row)
        written: list[Row] = []
        refused: list[str] = []
        for kind in self.kinds:
            # Each kind draws its own random numbers, so that leaving one out changes no other.
            rng = self.random(row, self.seed + 1000 * KINDS.index(kind))
            edits = self._fault(kind, row) or getattr(self, f"_{kind}")(scene, rng)
            if isinstance(edits, str):
                refused.append(f"{kind}: {edits}")
                continue
            for edit in edits:
                changed = _difference(frames, edit)
                if changed < self.min_change:
                    refused.append(f"{edit.kind}: it changes by {changed:.1f}, at least {self.min_change:g} wanted")
                else:
                    written += self._write(row, edit, changed, work)
        if not written:
            return Rejected("no edit without faults", "; ".join(refused))
        return [{**edited, "edits_refused": "; ".join(refused) or None} for edited in written]

    def _write(self, row: Row, edit: Edit, changed: float, work: Workspace) -> Iterator[Row]:
        name = f"{row['key']}-{edit.kind.replace(' ', '-')}"
        video, mask_path = work.output / "targets" / f"{name}.mp4", None
        write_video(video, edit.frames, row["fps"], crf=self.crf)
        if edit.mask is not None:
            file = work.output / "masks" / f"{name}.npz"
            save_mask(file, edit.mask)
            mask_path = work.name(file)
        clip, edited = row["source_path"], work.name(video)
        columns = {
            "source_start": 0,
            "target_start": 0,
            "target_frames": row["source_frames"],
            "edit": edit.kind,
            "mask_path": mask_path,
            "changed": changed,
        }
        forth = {"source_path": clip, "target_path": edited, "edit_type": edit.edit_type}
        yield {**row, **columns, **forth, "instruction": edit.instruction}
        if edit.back_type:
            back = {"source_path": edited, "target_path": clip, "edit_type": edit.back_type, "generated": "source"}
            yield {**row, **columns, **back, "instruction": edit.back_instruction}

    def _fault(self, kind: str, row: Row) -> str | None:
        """Why the clip's thing does not serve for an edit, which needs all of it: parts show as soon as they are set
        apart."""
        if kind in ("recolour", "style"):
            return None
        if not row.get("mask_path"):
            return "no clear object"
        if row["object_kind"] != "moving":
            return "a coloured thing may be a part of another"
        if kind != "remove" and row["mask_leftover"] > self.max_leftover:
            moves = f"{row['mask_leftover']:.2f} of what surrounds it moves along"
            return f"{moves}, at most {self.max_leftover:g} allowed"
        return None

    def _remove(self, scene: Scene, rng: np.random.Generator) -> list[Edit] | str:
        cleaned = clean(scene.frames, scene.mask, scene.motion)
        if cleaned is None:
            return "the camera moves too far"
        if cleaned.unseen > self.max_unseen:
            return f"{cleaned.unseen:.0%} of its place is never seen, at most {self.max_unseen:.0%} allowed"
        if cleaned.misfit > self.max_misfit:
            return f"frames differ by {cleaned.misfit:.1f} around it, at most {self.max_misfit:g} allowed"
        if cleaned.seam > self.max_seam:
            return f"a seam of {cleaned.seam:.2f}, at most {self.max_seam:g} allowed"
        phrase = scene.row["object"]
        remove = instruction("remove", rng, object=phrase)
        add = instruction("add", rng, one=indefinite(phrase), place=place_of(scene.mask))
        return [Edit("remove", cleaned.frames, cleaned.mask, "remove", remove, "add", add)]

    def _copy(self, scene: Scene, rng: np.random.Generator) -> list[Edit] | str:
        copied = copy_aside(scene.frames, scene.mask, scene.motion)
        if isinstance(copied, str):
            return copied
        frames, mask, side = copied
        phrase = scene.row["object"]
        words = {"object": phrase, "noun": noun(phrase), "side": side}
        add, remove = (instruction(f"{verb} copy", rng, **words) for verb in ("add", "remove"))
        return [Edit("copy", frames, mask, "add", add, "remove", remove)]

    def _recolour(self, scene: Scene, rng: np.random.Generator) -> list[Edit] | str:
        frames, mask, row = scene.frames, scene.mask, scene.row
        colour, phrase = row.get("object_colour"), row.get("object")
        # Without a thing of one colour that nothing else has, a colour of the whole picture.
        everywhere = not colour or (row["object_kind"] == "coloured" and found_elsewhere(frames, mask) > _ELSEWHERE)
        if everywhere:
            found = strong_colour(frames)
            if found is None:
                return "no thing has one colour and no colour stands out"
            mask, colour = found
            phrase = f"everything {colour}"
        painted = recolour(frames, mask, str(colour), rng, everywhere=everywhere)
        if isinstance(painted, str):
            return painted
        frames, changed, paint = painted
        words = instruction("recolour", rng, object=str(phrase), colour=paint)
        return [Edit("recolour", frames, changed, "recolour", words)]

    def _background(self, scene: Scene, rng: np.random.Generator) -> list[Edit] | str:
        for look in rng.permutation(list(BACKGROUNDS)):
            words = instruction(f"background {look}", rng, object=scene.row["object"])
            frames, changed = change_background(scene.frames, scene.mask, str(look))
            edit = Edit(f"background {look}", frames, changed, "background", words)
            if _difference(scene.frames, edit) >= self.min_change:
                return [edit]
        return f"no look changes it by {self.min_change:g}"

    def _style(self, scene: Scene, rng: np.random.Generator) -> Iterator[Edit]:
        for style in rng.permutation(list(STYLES))[: self.styles]:
            words = instruction("style", rng, style=str(rng.choice(np.array(STYLE_PHRASES[str(style)]))))
            yield Edit(str(style), apply_style(scene.frames, str(style)), None, "style", words)


def _difference(frames: np.ndarray, edit: Edit) -> float:
    """Mean absolute difference of the edited clip, 0..255, where it is to differ."""
    difference = np.abs(edit.frames.astype(np.int16) - frames).mean(axis=-1)
    return float(difference.mean() if edit.mask is None else difference[edit.mask].mean())
