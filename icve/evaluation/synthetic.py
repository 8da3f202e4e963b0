"""The held-out synthetic benchmark: does an edit reach the true target, and how closely?

The test set (``icve synthesize pairs --split test``, or a harder split) knows for every edit the true target, the exact
edit mask and the targets of four *distractor* instructions on the same scene, two of them the nearest wrong edits. So
an edit can be judged without a judge model:

- *success*: the result is strictly nearer (mean squared pixel error over the clip) to the true target than to the
  source and to each of the four distractor targets;
- PSNR against the true target: over the clip, inside and outside the edit mask, each beside two references,
  *copy* (returning the source unchanged) and *codec* (the codec's own reconstruction of the true target, the best
  any editor in its latent space can do).

Every clip is compared as uint8 RGB (F,H,W,3) on the 0..255 scale, so edits straight from a pipeline and edits decoded
from files are measured alike. :func:`measure_edit` and :func:`summarise` are pure functions on arrays and rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from icve.data.edit_types import EDIT_TYPES
from icve.data.manifest import read_manifest, resolve_path
from icve.data.masks import load_mask
from icve.data.media.video import read_frames, write_video
from icve.evaluation.edits import read_edited
from icve.evaluation.intervals import wilson_interval
from icve.evaluation.metrics.psnr import psnr, squared_error
from icve.runtime.atomic import write_text
from icve.runtime.printable import json_line, json_lines

REGIONS = ("", "_inside", "_outside")
SUBJECTS = ("psnr", "psnr_copy", "psnr_codec")
FIGURES = tuple(subject + region for subject in SUBJECTS for region in REGIONS)

Clip = np.ndarray


@dataclass(frozen=True)
class HeldOutEdit:
    """One test edit. Clips are uint8 (F,H,W,3) RGB, the mask is bool (F,H,W), true where the edit may change pixels."""

    id: str
    instruction: str
    edit_type: str
    source: Clip
    target: Clip
    mask: np.ndarray
    distractors: tuple[Clip, ...]


@dataclass(frozen=True)
class Evaluation:
    """``figures``: the benchmark's means; ``edits``: a row of figures per edit; ``results``: uint8 clips by edit id."""

    figures: dict[str, Any]
    edits: list[dict[str, Any]]
    results: dict[str, Clip]


def measure_edit(result: Clip | None, edit: HeldOutEdit, reconstruction: Clip | None = None) -> dict[str, Any]:
    """Figures of one edit: ``success``, ``nearest`` and PSNRs of the result, of copying and of the codec.

    ``result`` and ``reconstruction`` (the codec's decode(encode(target)); its figures are None without it) are uint8
    (F,H,W,3). ``nearest`` names the clip the result is nearest to: target, source or distractor_0..3; a tie is never a
    success. Without a result (editing failed) it is "missing", no success, and the result's PSNRs are None. Raises
    ValueError when the result's shape is not the target's.
    """
    for name, clip in (("result", result), ("reconstruction", reconstruction)):
        if clip is not None and (clip.shape != edit.target.shape or clip.dtype != np.uint8):
            raise ValueError(
                f"The {name} of edit {edit.id} is {clip.dtype} {clip.shape}, its target uint8 {edit.target.shape}: "
                "give uint8 clips with the target's number of frames, height and width."
            )
    nearest = "missing" if result is None else _nearest(result, edit)
    row: dict[str, Any] = {"id": edit.id, "edit_type": edit.edit_type, "instruction": edit.instruction}
    row |= {"success": nearest == "target", "nearest": nearest}
    regions = dict(zip(REGIONS, (None, edit.mask, ~edit.mask), strict=True))
    for subject, clip in zip(SUBJECTS, (result, edit.source, reconstruction), strict=True):
        for name, region in regions.items():
            row[subject + name] = None if clip is None else psnr(clip, edit.target, region)
    return row


def summarise(edits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over edits, overall and under ``per_edit_type``, and under ``per_split`` where there are several: success
    ratio with its 95 % interval, the nine PSNRs of :data:`FIGURES`, count.

    ``psnr*`` are means of decibels over edits. An edit without a region (a style edit has no outside) is left out of
    that region's mean; a mean over nothing is None. ``nearest_to_source`` and ``nearest_to_distractor`` split the
    failures into copies and wrong edits (shares of all edits); ``missing`` counts edits without result. Raises
    ValueError for no edits.
    """
    if not edits:
        raise ValueError("There is no edit to summarise: the test manifest is empty.")
    present = {edit["edit_type"] for edit in edits}
    order = [kind for kind in EDIT_TYPES if kind in present] + sorted(present.difference(EDIT_TYPES))
    by_type = {kind: _means([edit for edit in edits if edit["edit_type"] == kind]) for kind in order}
    figures = _means(edits) | {"per_edit_type": by_type}
    splits = list(dict.fromkeys(edit.get("split") for edit in edits))
    if len(splits) > 1:
        by_split = {name: [edit for edit in edits if edit.get("split") == name] for name in splits}
        figures["per_split"] = {str(name): _means(group) for name, group in by_split.items()}
    return figures


def load_edit(row: Mapping[str, Any], root: Path) -> HeldOutEdit:
    """Decode one row of a test manifest whose paths are relative to ``root``.

    Raises ValueError for a row without the benchmark's columns (a training manifest, say).
    """
    missing = [key for key in ("target_path", "mask_path", "distractor_paths", "edit_type") if not row.get(key)]
    if missing:
        raise ValueError(
            f"Row {row['id']} of the test manifest has no {', '.join(missing)}: "
            "make a test set with `icve synthesize pairs --split test`."
        )
    clips = decode_clip(row, "source", root), decode_clip(row, "target", root)
    mask = load_mask(resolve_path(root, row["mask_path"]))
    distractors = tuple(read_frames(resolve_path(root, path)) for path in row["distractor_paths"])
    return HeldOutEdit(row["id"], row["instruction"], row["edit_type"], *clips, mask, distractors)


def decode_clip(row: Mapping[str, Any], role: str, root: Path) -> Clip:
    """The ``source`` or ``target`` clip of a manifest row, uint8 (F,H,W,3)."""
    start, count = row.get(f"{role}_start") or 0, row.get(f"{role}_frames")
    return read_frames(resolve_path(root, row[f"{role}_path"]), start=start, count=count)


def evaluate(
    editor: Any,
    manifest: str | Path,
    *,
    batch_size: int = 16,
    seed: int = 0,
    limit: int | None = None,
    codec: Any = None,
    progress: bool = True,
    splits: Sequence[str] | None = None,
    **sampling: Any,
) -> Evaluation:
    """Edit a held-out set and measure every edit.

    Args:
        editor: an :class:`icve.editing.pipeline.EditPipeline`, another callable, or results made elsewhere:
            a mapping from edit id to a uint8 (F,H,W,3) clip or to the path of a video. An edit without result failed.
            A callable gets source uint8 (B,3,F,H,W), instructions, and one torch.Generator per edit, and returns an
            :class:`icve.editing.edit_result.EditResult` with a float video in [-1,1].
        manifest: test manifest with masks and distractors; its paths are relative to its root.
        batch_size: edits sampled together (of equal shape). Noise depends on (seed, edit id) only, so the batch size
            and the order of the rows change nothing but rounding.
        seed: of the initial noise.
        limit: only the first so many rows.
        codec: for ``psnr_codec``; by default the pipeline's own. Without one those figures are None.
        splits: only rows of these splits; None takes all.
        sampling: options of the pipeline's call (num_inference_steps, guidance_scale, shift, negative_prompt).

    Returns figures with ``seconds_edit`` (sampling alone, all edits) and ``seconds_per_edit`` added.

    Raises ValueError for a split that the manifest has no row of, and as :func:`load_edit` does.
    """
    held_out = read_manifest(manifest)
    chosen = held_out[:limit] if splits is None else _of_splits(held_out, splits)[:limit]
    # Edits of one size are sampled together.
    rows = sorted(
        chosen, key=lambda row: (row.get("height") or 0, row.get("width") or 0, row.get("source_frames") or 0)
    )
    split_of = {row["id"]: row.get("split") for row in rows}
    given = editor if isinstance(editor, Mapping) else None
    codec = codec if codec is not None else getattr(editor, "codec", None)
    edits: list[dict[str, Any]] = []
    results: dict[str, Clip] = {}
    seconds = 0.0
    with tqdm(total=len(rows), desc="edit held-out set", unit="edit", disable=not progress) as bar:
        for batch in _batches((load_edit(row, held_out.root) for row in rows), batch_size):
            started = time.perf_counter()
            if given is None:
                results |= zip([edit.id for edit in batch], _edit_batch(editor, batch, seed, sampling), strict=True)
            else:
                results |= {edit.id: _as_clip(given[edit.id]) for edit in batch if given.get(edit.id) is not None}
            seconds += time.perf_counter() - started
            decoded = _reconstruct(codec, batch) if codec is not None else [None] * len(batch)
            for edit, reconstruction in zip(batch, decoded, strict=True):
                row = measure_edit(results.get(edit.id), edit, reconstruction)
                edits.append(row | {"split": split_of[edit.id]})
            bar.update(len(batch))
    if not results:
        raise ValueError(f"There is no result for any of the {len(edits)} edits of {manifest}.")
    figures = summarise(edits)
    if given is None:
        figures |= {"seconds_edit": round(seconds, 3), "seconds_per_edit": round(seconds / len(edits), 4)}
    return Evaluation(figures, edits, results)


def save_evaluation(evaluation: Evaluation, folder: str | Path, fps: float) -> Path:
    """Write ``edits.jsonl`` (a row per edit), the edited videos ``edits/0000.mp4`` … and, last, ``figures.json``.

    The videos are for looking at: H.264 costs a little quality, the figures were taken before. Returns the folder.
    """
    folder = Path(folder)
    rows = []
    for index, row in enumerate(tqdm(evaluation.edits, desc="write edited videos", unit="video", leave=False)):
        name = f"edits/{index:04d}.mp4"
        write_video(folder / name, evaluation.results[row["id"]], fps, crf=10)
        rows.append(row | {"result_path": name})
    write_text(folder / "edits.jsonl", "".join(map(json_line, rows)))
    write_text(folder / "figures.json", json.dumps(evaluation.figures, indent=2, allow_nan=False) + "\n")
    return folder


def load_evaluation(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and per-edit rows of :func:`save_evaluation`; ``result_path`` is made absolute.

    Raises FileNotFoundError when the folder holds no finished evaluation.
    """
    folder = Path(folder).absolute()
    if not (folder / "figures.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished evaluation: evaluate the model into it first.")
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in json_lines(folder / "edits.jsonl")]
    return figures, [row | {"result_path": str(folder / row["result_path"])} for row in rows]


def noise_generator(seed: int, edit_id: str) -> torch.Generator:
    """CPU torch.Generator that is a pure function of (seed, edit id)."""
    digest = hashlib.blake2b(f"{seed}/{edit_id}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def clip_to_tensor(clips: Sequence[Clip]) -> torch.Tensor:
    """uint8 clips (F,H,W,3) -> uint8 tensor (B,3,F,H,W)."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3).contiguous()


def tensor_to_clips(video: torch.Tensor) -> list[Clip]:
    """float tensor (B,3,F,H,W) in [-1,1] -> uint8 clips (F,H,W,3), rounded to the nearest level and clamped."""
    levels = video.detach().float().add(1.0).mul(127.5).round().clamp(0, 255)
    return list(levels.byte().permute(0, 2, 3, 4, 1).contiguous().cpu().numpy())


def _nearest(result: Clip, edit: HeldOutEdit) -> str:
    """What a result is nearest to; a tie is never the target."""
    wrong = {f"distractor_{i}": clip for i, clip in enumerate(edit.distractors)}
    clips = {"source": edit.source, **wrong, "target": edit.target}
    distances = {name: float(squared_error(result, clip).mean(dtype=np.float64)) for name, clip in clips.items()}
    return min(distances, key=distances.__getitem__)


def _means(edits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    count, successes = len(edits), sum(bool(e["success"]) for e in edits)
    means: dict[str, Any] = {"count": count, "success_ratio": successes / count}
    means["success_interval"] = [round(bound, 4) for bound in wilson_interval(successes, count)]
    for name in FIGURES:
        values = [e[name] for e in edits if e[name] is not None]
        means[name] = round(float(np.mean(values)), 4) if values else None
    means["nearest_to_source"] = sum(e["nearest"] == "source" for e in edits) / count
    means["missing"] = sum(e["nearest"] == "missing" for e in edits)
    means["nearest_to_distractor"] = sum(e["nearest"].startswith("distractor") for e in edits) / count
    return means


def _batches(edits: Iterator[HeldOutEdit], batch_size: int) -> Iterator[list[HeldOutEdit]]:
    """Runs of edits with one shape, at most ``batch_size`` long: only a batch at a time is held decoded."""
    for _, group in itertools.groupby(edits, key=lambda edit: edit.source.shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield batch


def _of_splits(rows: Sequence[Mapping[str, Any]], splits: Sequence[str]) -> list[Mapping[str, Any]]:
    present = dict.fromkeys(str(row.get("split")) for row in rows)
    if missing := [name for name in splits if name not in present]:
        raise ValueError(f"There is no edit of split {', '.join(missing)}: the test set has {', '.join(present)}.")
    return [row for row in rows if row.get("split") in splits]


def _as_clip(result: Any) -> Clip:
    return read_edited(Path(result)) if isinstance(result, str | Path) else np.asarray(result)


def _edit_batch(editor: Any, batch: list[HeldOutEdit], seed: int, sampling: dict[str, Any]) -> list[Clip]:
    with torch.inference_mode():
        edited = editor(
            clip_to_tensor([edit.source for edit in batch]),
            [edit.instruction for edit in batch],
            generator=[noise_generator(seed, edit.id) for edit in batch],
            **sampling,
        )
    return tensor_to_clips(edited.video)


def _reconstruct(codec: Any, batch: list[HeldOutEdit]) -> list[Clip]:
    tensors = itertools.chain(codec.parameters(), codec.buffers()) if isinstance(codec, torch.nn.Module) else ()
    reference = next((t for t in tensors if t.is_floating_point()), torch.zeros(()))
    video = clip_to_tensor([edit.target for edit in batch]).to(reference.device, reference.dtype) / 127.5 - 1.0
    with torch.inference_mode():
        return tensor_to_clips(codec.decode(codec.encode(video)))
