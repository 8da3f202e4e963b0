"""Records become rows or rejections, each once, also after a kill."""

import json
import subprocess
import sys
import time

import pytest

from icve.curation.importers import open_tables
from icve.curation.importers.importing import import_set
from icve.data.buckets import Bucket
from icve.data.manifest import ManifestError
from icve.data.paired_edits import PairedEditsDataModule
from tests.curation.importers.reports import checked, rejections, rows_of


def test_every_bad_record_is_rejected_with_its_reason(put, tmp_path):
    good = {"src": "a.mp4", "dst": "b.mp4", "text": "Add a hat."}
    (tmp_path / "elsewhere.mp4").write_bytes(b"")
    bad = {
        "malformed record": [
            17,
            ["x"],
            good | {"src": 3},
            *(good | {"text": t} for t in (float("nan"), 7, ["x"], "nan")),
        ],
        "no instruction": [good | {"text": "  "}, {"src": "a.mp4", "dst": "b.mp4"}],
        "no target_path": [good | {"dst": None}],
        "path leaves the root": [
            good | {"dst": "../elsewhere.mp4"},
            good | {"src": "/etc/hostname"},
            good | {"src": "link.mp4"},
        ],
        "missing file": [good | {"src": "absent.mp4"}, good | {"dst": "a\0b"}, good | {"dst": "\ud800.mp4"}],
        "unreadable video": [good | {"dst": "text.mp4"}, good | {"src": "empty.mp4"}],
        "source is target": [good | {"dst": "a.mp4"}],
        "duplicate": [good, good | {"note": "other columns do not make it another edit"}],
    }
    # A list within a list is no record but a list of records.
    records = [good, *(record for group in bad.values() for record in group)]
    source = put(files={"t.json": records, "a.mp4": True, "b.mp4": True, "text.mp4": "no video", "empty.mp4": ""})
    (source / "link.mp4").symlink_to(tmp_path / "elsewhere.mp4")
    columns = {"src": "source_path", "dst": "target_path", "text": "instruction"}
    report = import_set("csv", source, tmp_path / "out", columns)
    (row,) = checked(report, source)
    assert row["instruction"] == "Add a hat."
    assert dict(report.rejected) == {reason: len(group) for reason, group in bad.items()}
    found = rejections(report)
    assert all(row["stage"] == "import" and row["table"] == "t.json" and row["record"] for row in found)
    assert [row["record_number"] for row in found] == list(range(2, len(records) + 1))
    assert json.loads(found[2]["record"])["src"] == 3
    details = {row["reason"]: row["detail"] for row in found}
    assert "text.mp4" in details["unreadable video"] or "empty.mp4" in details["unreadable video"]


def test_tables_in_any_letter_case_and_encoding(put, tmp_path):
    table = "source_path,target_path,instruction\na.mp4,b.mp4,Add a é\n"
    files = {"one.CSV": table.encode("utf-16"), "two.Tsv": table.replace(",", "\t").replace("é", "ü")}
    files["three.JSONL"] = json.dumps({"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "Add \u2028 it"})
    source = put(files={**files, "four.csv": table.replace("é", "ö").encode("utf-8-sig"), "a.mp4": True, "b.mp4": True})
    report = import_set("csv", source, tmp_path / "out")
    assert {row["instruction"] for row in checked(report, source)} == {"Add a é", "Add a ü", "Add a ö", "Add \u2028 it"}


def test_checks(put, tmp_path):
    records = [{"src_video": "a.mp4", "tgt_video": name, "prompt": "Add it"} for name in ("b.mp4", "c.mp4", "d.mp4")]
    table = "src_video,tgt_video,prompt\n" + "".join(",".join(record.values()) + "\n" for record in records)
    source = put(files={"k.csv": table, "a.mp4": True, "b.mp4": True, "c.mp4": "no video"})
    kept = {
        check: import_set("kiwi", source, tmp_path / check, check=check).kept for check in ("none", "exists", "probe")
    }
    assert kept == {"none": 3, "exists": 2, "probe": 1}


def test_a_rerun_does_what_is_missing(put, tmp_path, monkeypatch):
    monkeypatch.setattr(open_tables, "BLOCK", 4)
    count = 14
    records = [
        {"src_video": f"s{n}.mp4", "tar_video": f"t{n}.mp4", "instruction_final_refine": f"Add {n}"}
        for n in range(count)
    ]
    videos = {record[key]: True for record in records for key in ("src_video", "tar_video")}
    absent = videos.pop("t5.mp4")
    table = "add/add_data_configs.json"
    source, output = put(files={table: records, **videos}), tmp_path / "out"
    first = import_set("reco", source, output, limit=10)
    assert (first.read, first.kept, dict(first.rejected)) == (10, 9, {"missing file": 1})

    def stamps():
        return {path.name: path.stat().st_mtime_ns for path in sorted((output / "rejected").glob("*.parquet"))}

    before = stamps()
    (output / "rejected" / sorted(before)[2]).unlink()  # as if it had been killed here
    put(files={"t5.mp4": absent})
    second = import_set("reco", source, output)
    assert [row["instruction"] for row in checked(second, source)] == [f"Add {n}" for n in range(count)]
    after = stamps()
    same = [after[name] == stamp for name, stamp in sorted(before.items())]
    assert same == [True, False, False]  # the second block had missed a file

    before = stamps()
    third = import_set("reco", source, output)
    assert stamps() == before
    assert (third.read, third.kept, third.types) == (second.read, second.kept, second.types)
    put(files={table: records[:6] + records[5:6]})
    shorter = import_set("reco", source, output)
    assert len(checked(shorter, source)) == 6
    assert dict(shorter.rejected) == {"duplicate": 1}
    assert len(stamps()) == 2

    with pytest.raises(ManifestError, match="another import"):
        import_set("reco", source, output, root=source / "add")


@pytest.mark.multiprocess
@pytest.mark.timeout(90)
def test_a_killed_import_goes_on(put, tmp_path):
    count = 12 * open_tables.BLOCK
    table = "src_video,tgt_video,prompt\n" + "".join(f"a.mp4,b.mp4,Add {n}\n" for n in range(count))
    source, output = put(files={"k.csv": table}), tmp_path / "out"
    command = [sys.executable, "-m", "icve.cli.curate", "import", "kiwi", str(source), "--output", str(output)]
    process = subprocess.Popen([*command, "--check", "none"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while process.poll() is None and len(list(output.glob("rejected/part-*.parquet"))) < 3:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("rejected/part-*.parquet")}
    assert len(before) >= 3
    report = import_set("kiwi", source, output, check="none")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    rows = rows_of(report)
    assert report.read == report.kept == len(rows) == len({row["id"] for row in rows}) == count


def test_repeats_are_found_across_blocks_and_reruns(put, tmp_path, monkeypatch):
    monkeypatch.setattr(open_tables, "BLOCK", 2)
    names = ["1", "2", "1", "3", "2"]
    table = "src_video,tgt_video,prompt\n" + "".join(f"a.mp4,b.mp4,Add {name}\n" for name in names)
    source = put(files={"k.csv": table, "a.mp4": True, "b.mp4": True})
    for _ in range(2):
        report = import_set("kiwi", source, tmp_path / "out")
        assert (report.kept, dict(report.rejected)) == (3, {"duplicate": 2})
        last = sorted((tmp_path / "out" / "rejected").glob("*.parquet"))[-1]
        last.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"src_video": "a", "tgt_video": "b", "prompt": "x"}, {"src', "cut off or damaged"),
        ('[{"src_video": "a", "tgt_video": "b", "prompt": "x"}', "does not end"),
        ('[{"video": "a"}]', "has no column 'src_video', 'tgt_video', 'prompt' .it has video"),
        ("[]", "hold no records"),
        ("[3]", "has no record that can be read: record 1 is not a JSON object"),
    ],
)
def test_tables_that_cannot_be_used(put, tmp_path, text, message):
    source = put(files={"t.json": text})
    with pytest.raises(ManifestError, match=message):
        import_set("kiwi", source / "t.json", tmp_path / "out")


def test_wrong_arguments(put, tmp_path):
    source = put(files={"k.csv": "src_video,tgt_video,prompt\n"})
    for arguments, message in [
        ({"kind": "davis"}, "known are senorita"),
        ({"check": "decode"}, "must be one of"),
        ({"limit": 0}, "at least 1"),
        ({"folders": {"source": "x"}}, "no column with paths"),
        ({"columns": {"a": "instruction", "b": "instruction"}}, "mapped to twice"),
        ({"columns": {"a": "id"}}, "cannot map to id"),
        ({"tables": ["/etc/*.csv"]}, "below"),
        ({"tables": ["no*.csv"]}, "There is no table"),
    ]:
        with pytest.raises(ValueError, match=message):
            import_set(**{"kind": "kiwi", "source": source, "output": tmp_path / "out"} | arguments)
    with pytest.raises(FileNotFoundError):
        import_set("kiwi", tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_import_trains(put, tmp_path):
    records = [
        {"src_video": "s.mp4", "tar_video": "t.mp4", "instruction_final_refine": f"Add number {n}"} for n in range(3)
    ]
    source = put(files={"add/add_data_configs.json": records, "s.mp4": True, "t.mp4": True})
    report = import_set("reco", source, tmp_path / "out")
    data = PairedEditsDataModule(str(report.manifest), [Bucket(48, 64, 5)], 1, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["source"].shape == batch["target"].shape == (1, 3, 5, 48, 64)
    assert batch["instruction"][0].startswith("Add number")
