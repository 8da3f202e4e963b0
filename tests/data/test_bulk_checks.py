"""Columns checked in bulk against the checks of one record after the other, which decide."""

import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.data.manifest import ManifestError, read_manifest
from icve.data.rows import FILES, INTEGERS, content_id, id_of_rejected, row_checker
from icve.data.tables import Malformed, read_records

WORDS = [
    "make it red",
    "x",
    "",
    " ",
    "nan",
    " NaN ",
    "3.7",
    "١٢",
    "1e5",
    "e",
    "None",
    "<NA>",
    "n/a",
    "N/A.",
    "做红",
    "inf",
]
WORDS += ['say "no"', "back\\slash", "line\nbreak", "1_000", "-Infinity", "\x1c", "\u2028", "100 %", "é", "\x85 \xa0"]
PATHS = [
    "a.mp4",
    "v/é.mp4",
    "./a.mp4",
    "",
    "../a",
    "a/../b",
    "a..b",
    "/elsewhere/a",
    "a\0b",
    "ROOT/a.mp4",
    "ROOT//a.mp4",
]
PATHS += ["ROOT", "ROOT/", "ROOT/./b", "ROOT/c/", "ROOT/.", "ROOTx/a", "//ROOT/a", "LINK/v/a.mp4", " /a"]
NUMBERS = [0, 1, 24, 2**53, 2**53 + 1, 2**60, 2**70, -1, 2.0, 2.5, float("nan"), float("inf"), 1e-9, 23.976, True]
NUMBERS += ["7", " 7", "7.0", "1e3", "x", "", "-1", "9" * 20, "0.0000001", [1], {}]
IDS = ["a", "", "7", 7, -3, 7.5, float("nan"), True, ["x"], {"a": 1}, 2**70, "é", "x y"]
LISTS = [[], ["a.mp4", "b.mp4"], ["../a"], ["ROOT/a.mp4"], [3], [None], '["a.mp4"]', "[", "a.mp4", 3, ["a", ""]]
FREE = [1, 2.5, "x", None, [1, "a"], {"a": {"b": None}}, True, 2**70, float("inf"), "half \ud83d", ["half \ud83d"]]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root")
    return tmp_path / "root"


def made(value, root):
    if isinstance(value, list):
        return [made(item, root) for item in value]
    return (
        value.replace("ROOT", str(root)).replace("LINK", str(root.parent / "link")) if isinstance(value, str) else value
    )


def random_rows(seed: int, root, spoilt: float) -> list[dict]:
    """Rows of which most cells are plain; some lack columns."""
    draw = random.Random(seed)
    kinds = dict.fromkeys(FILES, PATHS) | dict.fromkeys((*INTEGERS, "fps"), NUMBERS)
    kinds |= {"instruction": WORDS, "id": IDS, "distractor_paths": LISTS, "note": FREE, "edit_type": ["add", 1, None]}
    plain = {
        "instruction": "make it 22 red",
        "id": "row",
        "distractor_paths": ["a.mp4"],
        "note": "x",
        "edit_type": "add",
    }
    plain |= dict.fromkeys(FILES, "v/a.mp4") | dict.fromkeys(INTEGERS, 12) | {"fps": 24.0}
    names = ["source_path", "instruction", *draw.sample(sorted(set(kinds) - {"source_path", "instruction"}), 9)]
    rows = []
    for _ in range(60):
        row = {name: draw.choice(kinds[name]) if draw.random() < spoilt else plain[name] for name in names}
        rows.append({n: made(v, root) for n, v in row.items() if n == "source_path" or draw.random() < 0.95})
    return rows


def one_by_one(path, root):
    """Rows and rejected records as a reader that looks at each record finds them."""
    records = list(read_records(path))
    names = list(dict.fromkeys(name for record in records if isinstance(record, dict) for name in record))
    check, rows, rejected = row_checker(names, path, root), [], []
    for number, record in enumerate(records, 1):
        if isinstance(record, Malformed):
            rejected.append((number, id_of_rejected(record), f"Line {record.line} of {path} {record.why}.", {}))
            continue
        cells = {name: None if path.suffix == ".csv" and cell == "" else cell for name, cell in record.items()}
        try:
            rows.append(check(cells, number))
        except ManifestError as error:
            rejected.append((number, id_of_rejected(cells), str(error), cells))
    return rows, rejected


def same(path, root) -> None:
    rows, rejected = one_by_one(path, root)
    found = read_manifest(path, root, required=(), partial=True)
    # Words for values: NaN is not equal to itself, and 1 is to True.
    assert repr(list(found)) == repr(rows)
    assert repr([found[number] for number in range(len(found))]) == repr(rows)
    told = [(record.number, record.id, record.reason, record.row) for record in found.rejected]
    assert repr(told) == repr(rejected)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("spoilt", [0.0, 0.03, 0.5])
def test_json_lines_are_read_as_one_by_one(root, seed, spoilt):
    lines = [json.dumps(row) for row in random_rows(seed, root, spoilt)]
    if seed % 3 == 0:
        lines.insert(7, "{")
        lines.insert(20, '{"source_path": "b.mp4", "instruction": "do"} {}')
    path = root.parent / "m.jsonl"
    path.write_text("\n".join(lines))
    same(path, root)


@pytest.mark.parametrize("seed", range(6))
def test_csv_is_read_as_one_by_one(root, seed):
    import csv

    names = ["id", "source_path", "mask_path", "instruction", "width", "fps", "note"]
    path = root.parent / "m.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        for row in random_rows(seed, root, 0.2):
            cells = {name: str(cell) for name, cell in row.items() if cell is not None}
            writer.writerow({n: c for n, c in cells.items() if "\ud83d" not in c and "\0" not in c and "\n" not in c})
    same(path, root)


PARQUET = {
    "id": [pa.int32(), pa.uint64(), pa.float64(), pa.string(), pa.large_string(), pa.bool_()],
    "instruction": [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.int8(),
    ],
    "source_path": [pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.binary()],
    "width": [pa.int8(), pa.uint64(), pa.int64(), pa.float32(), pa.float64(), pa.float16(), pa.string(), pa.bool_()],
    "fps": [pa.int64(), pa.float32(), pa.float64(), pa.decimal128(10, 3), pa.string(), pa.null()],
    "distractor_paths": [pa.list_(pa.string()), pa.large_list(pa.string()), pa.list_(pa.int64()), pa.string()],
    "note": [pa.timestamp("us"), pa.struct([("a", pa.int64())]), pa.binary(), pa.date32(), pa.list_(pa.float64())],
}


@pytest.mark.parametrize("seed", range(25))
def test_parquet_of_any_types_is_read_as_one_by_one(root, seed):
    draw = random.Random(seed)
    values = {"id": IDS, "instruction": WORDS, "source_path": PATHS, "width": NUMBERS, "fps": NUMBERS}
    values |= {"distractor_paths": LISTS, "note": [1, b"x", 2.5, {"a": 3}, [1.5]]}
    columns = {}
    for name, kinds in PARQUET.items():
        kind = draw.choice(kinds)
        fitting = [None]
        for value in (made(value, root) for value in values[name]):
            try:
                fitting.append(pa.scalar(value, kind).as_py())
            except (pa.ArrowException, OverflowError, TypeError, ValueError):
                continue
        plain = pa.scalar(fitting[-1], kind).as_py()
        column = [draw.choice(fitting) if draw.random() < 0.3 else plain for _ in range(40)]
        columns[name] = pa.array(column, kind)
    path = root.parent / "m.parquet"
    pq.write_table(pa.table(columns), path)
    same(path, root)


def test_ids_of_contents_are_those_of_single_rows(root):
    rows = [
        {"source_path": "a", "instruction": words, "source_start": start} for words in WORDS for start in (0, 3, None)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "m.parquet")
    found = read_manifest(root / "m.parquet", partial=True)
    assert [row["id"] for row in found] == [content_id(row) for row in found]
    assert len(found) > 20


def test_rows_are_new_dictionaries(root):
    (root / "m.jsonl").write_text(json.dumps({"source_path": "a", "instruction": "do", "note": {"deep": [1]}}))
    manifest = read_manifest(root / "m.jsonl")
    manifest[0]["note"]["deep"].append(2)
    manifest[0]["instruction"] = "other"
    assert manifest == [{"source_path": "a", "instruction": "do", "note": {"deep": [1]}, "id": manifest[0]["id"]}]
    assert manifest[-1] == manifest[:][0]
    with pytest.raises(IndexError):
        manifest[1]
    shutil.rmtree(root)
    assert len(list(manifest)) == 1
