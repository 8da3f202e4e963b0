"""How public sets of paired edits are laid out: tables, columns, folders and the names of tasks.

Where several layouts of a set are known they are tried in turn; what differs in a copy at hand is said with
`--tables`, `--columns` and `--folders`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from icve.data.edit_types import task_name
from icve.data.tables import SUFFIXES, Record

REQUIRED = ("source_path", "target_path", "instruction")
OPTIONAL_FILES = frozenset({"mask_video_path", "mask_path"})  # left empty where the file is not there

Columns = Mapping[str, str]


def _stem(path: str, table: PurePosixPath) -> str:
    return table.stem


@dataclass(frozen=True)
class PairSet:
    """Layout of a set.

    Attributes:
        title: the set's name.
        tables: patterns of its tables below the set's folder; the first group with a match is taken.
        columns: names in the tables → names in the manifest; the first mapping that a table has all columns of.
        more: further columns that a table may have, mapped likewise. Columns ending in ``_path`` name files.
        header: names of a CSV's columns by position, where its own header is of no use.
        folders: folders below the set's that paths are relative to, tried in turn; the table's own comes last.
        variants: other spellings of a path under which the file may lie.
        complete: adds columns to a record that follow from others.
        task: the set's name for the kind of edit, from the edited video's path as given and the table's path; a column
            mapped to ``edit_type`` goes before.
    """

    title: str
    tables: tuple[tuple[str, ...], ...]
    columns: tuple[Columns, ...]
    more: Columns = field(default_factory=dict)
    header: tuple[str, ...] = ()
    folders: tuple[str, ...] = ("",)
    variants: Callable[[str], list[str]] = lambda path: [path]
    complete: Callable[[Record, PurePosixPath], Record] = lambda record, table: record
    task: Callable[[str, PurePosixPath], str] = lambda path, table: ""


def _first_folder(path: str, table: PurePosixPath) -> str:
    parts = PurePosixPath(path).parts
    return parts[0] if len(parts) > 1 else table.stem


def _ditto_task(path: str, table: PurePosixPath) -> str:
    """The folder of the edited video, which lies in ``videos/`` or beside ``source/``."""
    folders = [part for part in PurePosixPath(path).parts[:-1] if part != "videos"]
    return folders[0] if folders else table.stem


def _senorita_variants(path: str) -> list[str]:
    """The tables say ``style_transfer/`` or ``obj_swap_videos/``, the archives ``obj_swap_upload/`` and the like."""
    folder, slash, rest = path.partition("/")
    stem = re.sub(r"(_videos)?(_upload\d*)?$", "", folder)
    endings = ("_upload", "_videos_upload", "_videos_upload2", "_videos")
    return [path, *(f"{stem}{ending}/{rest}" for ending in endings)] if slash else [path]


def _insvie_edited(record: Record, table: PurePosixPath) -> Record:
    if not {"edit_folder", "source"} <= record.keys():
        return record
    return record | {"edited": f"{record['edit_folder']}/{record['source']}"}


def _reco_mask(record: Record, table: PurePosixPath) -> Record:
    edited = record.get("tar_video")
    if not isinstance(edited, str):
        return record
    return record | {"mask_video": f"video_masks/{task_name(table.stem)}/{PurePosixPath(edited).name}"}


def _any_table(*suffixes: str) -> tuple[str, ...]:
    return tuple(f"{folder}*{suffix}" for suffix in suffixes for folder in ("", "*/", "*/*/"))


TARS = (_any_table(".tar"),)  # "tables" that hold the clips themselves: icve.curation.importers.tar_pairs

SETS: dict[str, PairSet] = {
    "senorita": PairSet(
        title="Señorita-2M",
        tables=(_any_table(".json", ".jsonl"),),
        columns=(
            {"source_video_path": "source_path", "target_video_path": "target_path", "instruction": "instruction"},
        ),
        variants=_senorita_variants,
        task=_first_folder,
    ),
    "insvie": PairSet(
        title="InsViE-1M",
        tables=(_any_table(".csv"),),
        columns=({"source": "source_path", "edited": "target_path", "instruction": "instruction"},),
        header=("source", "source_caption", "instruction", "edit_caption", "edit_folder"),
        folders=("", "videos"),
        complete=_insvie_edited,
    ),
    "ditto": PairSet(
        title="Ditto-1M",
        tables=(("training_metadata/*.json",), ("csvs_for_DiffSynth/*.csv",), _any_table(".json", ".csv")),
        columns=(
            {"source_path": "source_path", "edited_path": "target_path", "instruction": "instruction"},
            {"vace_video": "source_path", "video": "target_path", "prompt": "instruction"},
        ),
        folders=("videos", ""),
        task=_ditto_task,
    ),
    "openve": PairSet(
        title="OpenVE-3M",
        tables=(_any_table(".csv"),),
        columns=({"original_video": "source_path", "video": "target_path", "prompt": "instruction"},),
        more={"edited_type": "edit_type"},
        folders=("videos", ""),
        task=_stem,
    ),
    "reco": PairSet(
        title="ReCo-Data",
        tables=(("*/*_data_configs.json", "*_data_configs.json"),),
        columns=({"src_video": "source_path", "tar_video": "target_path", "instruction_final_refine": "instruction"},),
        more={"mask_video": "mask_video_path"},
        complete=_reco_mask,
        task=_stem,
    ),
    "kiwi": PairSet(
        title="Kiwi-Edit's training data",
        tables=(_any_table(".csv", ".parquet"),),
        columns=({"src_video": "source_path", "tgt_video": "target_path", "prompt": "instruction"},),
        more={"ref_image": "reference_path"},
        folders=("", "videos"),
    ),
    "vera": PairSet(
        title="Vera's layered videos",
        tables=(_any_table(".jsonl"),),
        columns=(
            {"input_video_path": "source_path", "composite_path": "target_path", "edit_instruction": "instruction"},
        ),
        more={
            "edit_rgb_path": "edit_layer_path",
            "edit_alpha_path": "edit_alpha_path",
            "mask_path": "mask_video_path",
        },
        task=lambda path, table: re.sub(r"^.*(bg-change|obj-add)$", r"\1", table.stem),
    ),
    "webdataset": PairSet(
        title="tar shards of WebDataset",
        tables=TARS,
        columns=({"source": "source_path", "target": "target_path", "instruction": "instruction"},),
        more={"mask": "mask_path", "edit_type": "edit_type", "edit_subtype": "edit_subtype"},
        folders=(),
    ),
    "csv": PairSet(
        title="table",
        tables=(_any_table(*sorted(SUFFIXES)),),
        columns=({name: name for name in REQUIRED},),
        more={"edit_type": "edit_type", "edit_subtype": "edit_subtype"},
    ),
}
