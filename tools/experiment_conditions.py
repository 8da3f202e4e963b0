"""Do masks and reference pictures do what they say? Trains an editor in the synthetic world and measures it.

    python tools/experiment_conditions.py --output runs/conditions          # about an hour on two quiet cores
    python tools/experiment_conditions.py --output runs/try --steps 4 --pairs 24 --edits 12     # does it run?

The editor that ships with icve is trained on with configs/experiments/conditions.yaml: on ordinary paired edits and
others of two kinds. It is compared with the editor as it ships, which knows no masks and references, and with --plain
with one that is trained on ordinary edits alone for as many steps. On scenes and wordings that none has seen:

- twins: two objects look alike and the words fit both; the mask says which is changed. Without it, half is chance;
- references: the words say where to add the object of a picture, which alone says its shape and colour; and the same
  edits with another picture (swapped), whose right result is another;
- ordinary edits, without mask and reference, by all editors.

An edit is right if it is strictly nearer to its true target than to the source and to the nearest wrong edits: of twins
that of the other one and of both; of references the other picture's, all other shapes in the colours of both pictures,
and the right object elsewhere (as in icve.evaluation.synthetic). Intervals are Wilson's, 95 %.
What is there already is kept: the same command goes on where it stopped.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from icve.cli.main import main as icve
from icve.data.manifest import read_manifest, relative_path, resolve_path, write_manifest
from icve.editing.editors import load_editor
from icve.evaluation.intervals import wilson_interval
from icve.evaluation.synthetic import (
    HeldOutEdit,
    clip_to_tensor,
    load_edit,
    measure_edit,
    noise_generator,
    tensor_to_clips,
)
from icve.runtime.atomic import write_text
from icve.synthetic.condition_files import synthesize_conditions
from icve.synthetic.pair_files import synthesize_pairs

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "experiments" / "conditions.yaml"
EDITOR = ROOT / "icve" / "editor"
UNSEEN = 1000  # added to the seed of scenes that are tested on


def make_data(folder: Path, pairs: int, edits: int, seed: int, workers: int) -> dict[str, Path]:
    """Manifests by what they hold, made where they are not there."""
    made: dict[str, Path] = {}
    for name, write, count, split, own in (
        ("pairs", synthesize_pairs, pairs, "train", seed + 7),
        ("conditions", synthesize_conditions, pairs, "train", seed),
        ("pairs_test", synthesize_pairs, edits, "test", seed + UNSEEN),
        ("conditions_test", synthesize_conditions, edits * 2 // 3, "test", seed + UNSEEN),
    ):
        made[name] = folder / name / "manifest.parquet"
        if not made[name].exists():
            write(folder / name, count, split=split, seed=own, workers=workers)
    made["both"] = folder / "both.parquet"
    rows = []
    for name in ("pairs", "conditions"):
        for row in read_manifest(made[name])[:pairs]:
            kept = ("source_path", "target_path", "mask_path", "reference_path")
            paths = {key: relative_path(folder / name / row[key], folder) for key in kept if row.get(key)}
            plain = ("source_frames", "target_frames", "width", "height", "fps", "instruction", "edit_type")
            rows.append({key: row[key] for key in plain} | dict.fromkeys(kept) | paths)
    write_manifest(rows, made["both"], root=folder)
    return made


def train(run: Path, manifest: Path, start: Path, steps: int, seed: int, options: Iterable[str]) -> None:
    """Fine-tune an editor, unless that was done."""
    if (run / "done").exists():
        return
    words = ["fit", "-c", str(CONFIG), f"--trainer.default_root_dir={run}", f"--seed_everything={seed}"]
    words += [f"--data.init_args.manifest={manifest}", f"--trainer.max_steps={steps}", *options]
    words += [f"--model.start.pretrained={start}", f"--trainer.val_check_interval={steps}"]
    if (run / "checkpoints").exists():
        words += ["--ckpt_path", str(run)]
    if status := icve(words):
        raise SystemExit(f"Training {run} failed with exit status {status}.")
    write_text(run / "done", "")


def rows_right(editor: Any, edits: list[tuple[HeldOutEdit, dict[str, Any]]], seed: int, batch: int = 20) -> list[dict]:
    """Figures of edits, each with what the editor is given besides its instruction (mask, reference)."""
    rows = []
    for start in range(0, len(edits), batch):
        part = edits[start : start + batch]
        given = {name: [conditions[name] for _, conditions in part] for name in part[0][1]}
        with torch.inference_mode():
            edited = editor(
                clip_to_tensor([edit.source for edit, _ in part]),
                [edit.instruction for edit, _ in part],
                generator=[noise_generator(seed, edit.id) for edit, _ in part],
                **given,
            )
        clips = tensor_to_clips(edited.video)
        rows += [measure_edit(clip, edit) for clip, (edit, _) in zip(clips, part, strict=True)]
    return rows


def measured(model: Path, tests: dict[str, Path], edits: int, seed: int, conditions: bool) -> dict[str, list[dict]]:
    """Figures of every edit by kind of test."""
    editor = load_editor(model)
    editor.set_progress_bar_config(disable=True)
    ordinary = read_manifest(tests["pairs_test"])
    found = {"ordinary": rows_right(editor, [(load_edit(row, ordinary.root), {}) for row in ordinary[:edits]], seed)}
    special = read_manifest(tests["conditions_test"])
    rows = special[: edits * 2 // 3]
    twins = [load_edit(row, special.root) for row in rows if row["condition"] == "mask"]
    found["twins, no mask"] = rows_right(editor, [(edit, {}) for edit in twins], seed)
    if not conditions:
        return found
    found["twins, mask"] = rows_right(editor, [(edit, {"mask": edit.mask}) for edit in twins], seed)
    boxes = [(edit, {"mask": box(edit.mask)}) for edit in twins]
    found["twins, a box around the mask"] = rows_right(editor, boxes, seed)
    shown, swapped = [], []
    for row in rows:
        if row["condition"] == "reference":
            edit = load_edit(row, special.root)
            shown.append((edit, {"reference": resolve_path(special.root, row["reference_path"])}))
            right, *wrong = edit.distractors
            other = replace(edit, target=right, distractors=(edit.target, *wrong))
            swapped.append((other, {"reference": resolve_path(special.root, row["swapped_reference_path"])}))
    found["references"] = rows_right(editor, shown, seed)
    found["references, swapped"] = rows_right(editor, swapped, seed)
    return found


def box(mask: Any) -> Any:
    """The rectangle around a mask (F, H, W) in every frame, as a user might draw it."""
    boxes = mask.copy()
    for frame in boxes:
        ys, xs = frame.nonzero()
        if len(ys):
            frame[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = True
    return boxes


def line(name: str, rows: list[dict]) -> str:
    right = sum(row["success"] for row in rows)
    low, high = wilson_interval(right, len(rows))
    return f"| {name} | {len(rows)} | {right / len(rows):.1%} ({low:.1%} to {high:.1%}) |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=5000, help="ordinary edits to train on; as many others")
    parser.add_argument("--edits", type=int, default=300, help="ordinary edits to test on; others: two thirds")
    parser.add_argument("--start", type=Path, default=EDITOR, help="run or editor to start from (the shipped one)")
    parser.add_argument("--plain", action="store_true", help="also train an editor on ordinary edits alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("options", nargs="*", help="of `icve fit`, for both editors")
    args = parser.parse_args()
    made = make_data(args.output / "data", args.pairs, args.edits, args.seed, args.workers)
    off = ["--model.transformer.init_args.masks=false", "--data.init_args.references=false"]
    off += ["--model.schedule.parts={}"]  # of the mask embedding
    arms: dict[str, tuple[Path, list[str]]] = {"conditions": (made["both"], []), "shipped": (Path(), [])}
    if args.plain:
        arms["plain"] = (made["pairs"], off)
    print("| editor, test | edits | right (95 % interval) |\n|---|---|---|")
    for name, (manifest, options) in arms.items():
        model = EDITOR if name == "shipped" else args.output / name
        if name != "shipped":
            train(model, manifest, args.start, args.steps, args.seed, [*options, *args.options])
        results = measured(model, made, args.edits, args.seed, conditions=name == "conditions")
        write_text(args.output / f"{name}.json", json.dumps(results))
        for test, rows in results.items():
            print(line(f"{name}, {test}", rows), flush=True)


if __name__ == "__main__":
    main()
