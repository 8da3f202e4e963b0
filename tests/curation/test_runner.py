"""The runner with toy stages: what is done, redone, lost by others' faults, and counted."""

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from icve.cli.curate import main
from icve.curation import supervisor
from icve.curation.raw_videos import find_inputs
from icve.curation.runner import LocalRunner, phases, run_pipeline
from icve.curation.stage_list import load_pipeline
from icve.curation.status import run_counts, status_text
from icve.curation.work import StageBroken
from icve.data.manifest import read_manifest

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(120)]

TOY = "tests.curation.toy_stages."


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "raw"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4", "c_drop.mp4", "sub/d.mp4", "sub/e.mp4"):
        (folder / name).write_bytes(name.encode())
    (folder / "notes.txt").write_text("no video")
    return folder


def pipeline_of(tmp_path, *stages, **top):
    entries = [{"class_path": TOY + name, "init_args": init} for name, init in stages]
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps({"shard_size": 2, **top, "stages": entries}))
    return file


def run(tmp_path, videos, *stages, output="out", workers=1, overrides=(), limit=None, share=(0, 1), **top):
    pipeline = load_pipeline(pipeline_of(tmp_path, *stages, **top), overrides)
    return run_pipeline(
        pipeline, find_inputs(videos), tmp_path / output, LocalRunner(workers), limit=limit, share=share
    )


def worked(tmp_path, output="out"):
    file = tmp_path / output / "worked.txt"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def rejected(tmp_path, output="out"):
    rows = [
        row for part in (tmp_path / output / "rejected").glob("*.parquet") for row in pq.read_table(part).to_pylist()
    ]
    return {(row["video"], row["stage"]): (row["reason"], row["detail"]) for row in rows}


def assert_counts_add_up(result, inputs):
    """Every row is kept or rejected, and what a stage gives is what the next one gets."""
    assert result.counts[0].rows_in == inputs
    for before, after in zip(result.counts, result.counts[1:], strict=False):
        assert after.rows_in == before.rows_out
    for count in result.counts:
        assert count.rows_in == count.passed + sum(count.rejected.values())
        assert count.shards == result.shards


CHAIN = (("Split", {"pieces": 2}), ("Count", {"value": 1}), ("Pair", {}))


def test_rows_reach_the_manifest_and_rejections_their_table(tmp_path, videos):
    result = run(tmp_path, videos, *CHAIN, workers=2)
    assert_counts_add_up(result, inputs=5)
    manifest = read_manifest(result.manifest)
    assert len(manifest) == result.rows == 8
    assert manifest.root == videos
    assert {row["source_path"] for row in manifest} == {"a.mp4", "b.mp4", "sub/d.mp4", "sub/e.mp4"}
    assert all(len(row["digest"]) == 32 and "key" not in row for row in manifest)
    assert rejected(tmp_path) == {("c_drop.mp4", "Split"): ("named so", "c_drop.mp4 holds drop")}
    assert result.failures == 0
    counts, shards = run_counts(tmp_path / "out")
    assert counts == result.counts
    assert shards == 3
    text = status_text(tmp_path / "out")
    assert "named so 1" in text
    assert text.endswith("finished")


def test_the_number_of_workers_changes_nothing(tmp_path, videos):
    tables = []
    for workers in (1, 3):
        result = run(tmp_path, videos, *CHAIN, workers=workers, output=f"out{workers}")
        tables.append(sorted(map(str, read_manifest(result.manifest))))
    assert tables[0] == tables[1]


def test_a_rerun_does_nothing_again(tmp_path, videos):
    first = run(tmp_path, videos, *CHAIN)
    assert len(worked(tmp_path)) == 8
    again = run(tmp_path, videos, *CHAIN)
    assert worked(tmp_path) == []
    assert again == first


def test_a_resumed_run_sees_rows_as_an_uninterrupted_one_does(tmp_path, videos):
    whole = run(tmp_path, videos, ("Levels", {}), ("Levels", {}))
    run(tmp_path, videos, ("Levels", {}), output="resumed")
    resumed = run(tmp_path, videos, ("Levels", {}), ("Levels", {}), output="resumed")
    rows, uninterrupted = (read_manifest(result.manifest, required=["video"]) for result in (resumed, whole))
    assert rows == uninterrupted
    assert {row["video"]: row["came"] for row in rows}["b.mp4"] == "float"


def test_a_changed_parameter_redoes_that_stage_and_what_follows(tmp_path, videos):
    stages = [("Count", {"value": 1}), ("Count", {"value": 2, "note": "x"}), ("Count", {"value": 3}), ("Pair", {})]
    run(tmp_path, videos, *stages)
    worked(tmp_path)
    stages[1] = ("Count", {"value": 20, "note": "x"})
    result = run(tmp_path, videos, *stages)
    lines = worked(tmp_path)
    assert sorted({line.split()[1] for line in lines}) == ["20", "3"]
    assert len(lines) == 10
    assert_counts_add_up(result, inputs=5)
    stages[1] = ("Count", {"value": 20, "note": "another"})  # changes no result
    run(tmp_path, videos, *stages)
    assert worked(tmp_path) == []


def test_new_changed_and_copied_inputs(tmp_path, videos):
    run(tmp_path, videos, *CHAIN)
    worked(tmp_path)
    (videos / "0_new.mp4").write_bytes(b"new")
    (videos / "0_copy.mp4").write_bytes((videos / "b.mp4").read_bytes())
    result = run(tmp_path, videos, *CHAIN)
    assert_counts_add_up(result, inputs=7)
    assert len(worked(tmp_path)) == 2
    assert result.rows == 10
    assert rejected(tmp_path)["0_copy.mp4", "inputs"] == ("duplicate", "the same file as b.mp4")
    (videos / "a.mp4").write_bytes(b"changed")
    (videos / "b.mp4").unlink()  # the copy takes its place
    (videos / "sub" / "e.mp4").unlink()
    result = run(tmp_path, videos, *CHAIN)
    assert_counts_add_up(result, inputs=5)
    assert {row["source_path"] for row in read_manifest(result.manifest)} == {
        "0_copy.mp4",
        "0_new.mp4",
        "a.mp4",
        "sub/d.mp4",
    }
    assert len(worked(tmp_path)) == 6  # the shards of a and of the new ones; e's shard is empty, which is no work


def test_a_limit_takes_the_first_inputs(tmp_path, videos):
    assert run(tmp_path, videos, *CHAIN, limit=2).rows == 4
    worked(tmp_path)
    result = run(tmp_path, videos, *CHAIN)
    assert result.rows == 8
    assert len(worked(tmp_path)) == 4


def test_rows_that_raise_hang_or_kill_cost_nobody_else(tmp_path, videos, monkeypatch):
    monkeypatch.setattr(supervisor, "GRACE", 1.5)
    for name in ("raise.mp4", "hang.mp4", "die.mp4"):
        (videos / name).write_bytes(name.encode())
    result = run(tmp_path, videos, ("Misbehave", {"limit": 0.3, "batch": 4}), ("Pair", {}), shard_size=4)
    assert_counts_add_up(result, inputs=8)
    assert result.rows == 5
    assert result.failures == 3
    found = rejected(tmp_path)
    assert found["raise.mp4", "Misbehave"] == ("error", "KeyError: 'no such thing'")
    assert found["hang.mp4", "Misbehave"][0] == "timed out"
    assert found["die.mp4", "Misbehave"] == ("process died", "was killed by SIGKILL")


def test_what_may_pass_is_tried_again(tmp_path, videos):
    output = tmp_path / "out"
    output.mkdir()
    (output / "down").touch()
    stages = (("Count", {}), ("Flaky", {}), ("Count", {"value": 2}), ("Pair", {}))
    result = run(tmp_path, videos, *stages)
    assert result.rows == 0
    assert result.failures == 5
    worked(tmp_path)
    (output / "down").unlink()
    result = run(tmp_path, videos, *stages)
    assert result.rows == 5
    assert {line.split()[1] for line in worked(tmp_path)} == {"2"}
    assert rejected(tmp_path) == {}


def test_a_stage_that_sees_all_rows(tmp_path, videos):
    stages = (("Split", {}), ("Keep", {"count": 3}), ("Count", {}), ("Pair", {}))
    result = run(tmp_path, videos, *stages, workers=2)
    assert_counts_add_up(result, inputs=5)
    assert result.rows == 3
    assert len(worked(tmp_path)) == 3
    (videos / "0_new.mp4").write_bytes(b"new")
    assert run(tmp_path, videos, *stages).rows == 3
    worked(tmp_path)
    run(tmp_path, videos, *stages)
    assert worked(tmp_path) == []


def test_shares_of_several_processes_make_one_run(tmp_path, videos):
    alone = run(tmp_path, videos, *CHAIN, output="alone")
    first = run(tmp_path, videos, *CHAIN, share=(0, 2))
    assert first.manifest is None
    second = run(tmp_path, videos, *CHAIN, share=(1, 2))
    assert second.counts[1:] != first.counts[1:]
    assert sorted(map(str, read_manifest(second.manifest))) == sorted(map(str, read_manifest(alone.manifest)))
    stages = (("Keep", {}), ("Pair", {}))
    assert run(tmp_path, videos, *stages, output="all", share=(0, 2)).counts[1].shards == 0
    assert run(tmp_path, videos, *stages, output="all", share=(1, 2)).counts[1].shards == 3
    assert run(tmp_path, videos, *stages, output="all", share=(0, 2)).rows == 3


def test_a_stage_that_cannot_run_ends_the_run_and_keeps_what_is_done(tmp_path, videos):
    with pytest.raises(StageBroken, match="cannot start: there is no model"):
        run(tmp_path, videos, ("Count", {}), ("Broken", {}))
    with pytest.raises(StageBroken, match="which sees all rows, twice was killed by SIGKILL"):
        run(tmp_path, videos, ("Die", {}), output="dead")
    with pytest.raises(StageBroken, match="out cannot be written: No space left on device"):
        run(tmp_path, videos, ("Count", {}), ("FullDisk", {}))
    with pytest.raises(StageBroken, match="0 outcomes for 1 rows"):
        run(tmp_path, videos, ("Forgetful", {}), output="other")


def test_a_killed_run_redoes_at_most_the_running_shards(tmp_path, videos, repository):
    for number in range(12):
        (videos / f"more_{number}.mp4").write_bytes(b"more" * number)
    pipeline = pipeline_of(tmp_path, ("Count", {}), ("Slow", {"delay": 0.15}), ("Pair", {}))
    command = [sys.executable, "-m", "icve.cli.curate", str(pipeline), "--input", str(videos), "--output"]
    command += [str(tmp_path / "out"), "--workers", "1", "--gpus", "0"]
    process = subprocess.Popen(command, cwd=repository, start_new_session=True, stderr=subprocess.DEVNULL)
    second = tmp_path / "out" / "stages" / "02-Slow"
    deadline = time.monotonic() + 60
    while len(list(second.glob("0*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = worked(tmp_path)
    assert 6 <= len(before) < 17
    assert subprocess.run(command, cwd=repository, capture_output=True, check=False).returncode == 0
    again = worked(tmp_path)
    assert len(set(before) & set(again)) <= 2  # one shard of two
    assert len(set(before) | set(again)) == 17
    assert len(read_manifest(tmp_path / "out" / "manifest")) == 17


def test_workers_end_with_their_parent(tmp_path, videos, repository):
    pipeline = pipeline_of(tmp_path, ("Slow", {"delay": 1000}))
    command = [sys.executable, "-m", "icve.cli.curate", str(pipeline), "--input", str(videos), "--output"]
    process = subprocess.Popen([*command, str(tmp_path / "out")], cwd=repository, stderr=subprocess.DEVNULL)

    def children():
        return subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()

    deadline = time.monotonic() + 60
    while not (tmp_path / "out" / "stages" / "00-inputs").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = children()
    assert workers
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [pid for pid in workers if os.path.exists(f"/proc/{pid}")]


def test_gpu_stages_and_those_that_see_all_rows_run_alone(tmp_path):
    stages = (("Split", {}), ("Count", {}), ("Pair", {}), ("Pair", {}), ("Keep", {}), ("Count", {}))
    found = phases(load_pipeline(pipeline_of(tmp_path, *stages)))
    assert [(phase.numbers, phase.needs, phase.scope) for phase in found] == [
        ((1, 2), "cpu", "rows"),
        ((3,), "gpu", "rows"),
        ((4,), "gpu", "rows"),
        ((5,), "cpu", "all"),
        ((6,), "cpu", "rows"),
    ]


def test_links_that_leave_the_input_are_refused(tmp_path, videos):
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    (videos / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    result = run(tmp_path, videos, ("Pair", {}))
    assert_counts_add_up(result, inputs=6)
    assert result.rows == 5
    assert rejected(tmp_path)["link.mp4", "inputs"][0] == "leaves the input folder"


def test_a_manifest_as_input(tmp_path, videos):
    first = run(tmp_path, videos, *CHAIN)
    result = run(tmp_path, first.manifest, ("Count", {"value": 5}), output="second")
    assert {row["id"] for row in read_manifest(result.manifest)} == {row["id"] for row in read_manifest(first.manifest)}
    assert result.rows == 8


def test_ids_of_a_manifest_lead_nowhere(tmp_path, videos):
    ids = ["../../etc/passwd", "a/b", "plain-1", "plain-1"]
    rows = [{"id": name, "source_path": "a.mp4", "instruction": "go", "video": "a.mp4"} for name in ids]
    (videos / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = find_inputs(videos / "list.jsonl")
    assert len(found.names) == 4
    assert all(name.replace("-", "").isalnum() for name in found.names)
    assert found.names[2:] == ["plain-1", "plain-1-copy2"]


def test_bad_rows_of_a_manifest_are_rejected_alone_and_columns_of_every_type_survive(tmp_path, videos):
    more = {
        "taken": datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC),
        "price": Decimal("1.50"),
        "thumb": b"\xff\xd8",
        "meta": {"fps": 24, "tags": ["a"]},
    }
    rows = [
        {"id": f"r{n}", "source_path": "a.mp4", "video": "a.mp4", "instruction": "do", "source_start": str(n)}
        for n in range(3)
    ]
    rows = [row | more for row in rows]
    rows[1]["source_start"] = "-1"
    pq.write_table(pa.Table.from_pylist(rows), videos / "list.parquet")
    result = run(tmp_path, videos / "list.parquet", ("Count", {"value": 5}), ("Keep", {}))
    assert_counts_add_up(result, inputs=3)
    kept = read_manifest(result.manifest)
    assert [row["source_start"] for row in kept] == [0, 2]
    assert all(row[name] == value for row in kept for name, value in more.items())
    (why,) = rejected(tmp_path).values()
    assert why[0] == "malformed row"
    assert "source_start in row 2" in why[1]


def test_free_columns_of_mixed_types_survive(tmp_path, videos):
    rows = [
        {"id": f"r{n}", "source_path": "a.mp4", "video": "a.mp4", "instruction": "do", "note": note}
        for n, note in enumerate((1, "x"))
    ]
    (videos / "list.json").write_text(json.dumps(rows))
    result = run(tmp_path, videos / "list.json", ("Count", {"value": 5}))
    assert [row["note"] for row in read_manifest(result.manifest)] == ["1", "x"]


def test_a_file_that_cannot_be_read_now_is_tried_again(tmp_path, videos, monkeypatch):
    from icve.curation import raw_videos as inputs

    real = inputs.file_digest

    def refuse(path):
        if path.name == "a.mp4":
            raise PermissionError(13, "Permission denied")
        return real(path)

    found = find_inputs(videos)
    monkeypatch.setattr(inputs, "file_digest", refuse)
    rows = found.read(found.names)
    (refused,) = (item for item in rows if not isinstance(item, dict))
    assert refused[1].reason == "unreadable file"
    assert refused[1].transient


def test_the_command(tmp_path, videos, capsys):
    pipeline = str(pipeline_of(tmp_path, *CHAIN, speed=3))
    output = str(tmp_path / "out")
    assert main([pipeline, "speed=4", "--input", str(videos), "--output", output, "--workers", "1"]) == 0
    assert "8 rows" in capsys.readouterr().out
    assert main(["status", output]) == 0
    assert "Split" in capsys.readouterr().out
    for arguments, said in (
        ([pipeline, "--input", str(tmp_path / "nothing"), "--output", output], "There is no"),
        ([pipeline, "frames=3", "--input", str(videos), "--output", output], "no 'frames' to override"),
        (["none.yaml", "--input", str(videos), "--output", output], "There is no pipeline"),
        (["status", str(tmp_path)], "no curation run"),
    ):
        assert main(arguments) == 2
        message = capsys.readouterr().err
        assert said in message
        assert message.count("\n") == 1
