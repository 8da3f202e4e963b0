from pathlib import Path
from types import SimpleNamespace

from lightning.pytorch.utilities import rank_zero_only

from icve.data.transforms import KeepSource
from icve.training.checkpoints.data_record import data_changes, data_record


def module(manifest, **settings):
    return SimpleNamespace(manifest=str(manifest), batch_size=2, num_workers=0, **settings)


def test_only_what_changed_is_told(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    saved = data_record(module(file, train=SimpleNamespace(rows=1)), "sft")
    assert saved["rows"] == 1
    assert data_changes(saved, module(file), "sft") is None
    file.rename(tmp_path / "b.jsonl")  # content counts, not the name
    assert data_changes(saved, module(tmp_path / "b.jsonl"), "sft") is None
    assert data_changes(saved, module(tmp_path / "b.jsonl", tokens_per_batch=7), "sft") is None  # not known of then
    (tmp_path / "b.jsonl").write_text("[]\n")
    same_rows = module(tmp_path / "b.jsonl", rows=lambda path: [path])
    assert data_changes(saved, same_rows, "sft") == "Changed since the checkpoint: the training data (1 rows)."
    longer = module(tmp_path / "b.jsonl", rows=lambda path: [path, path])
    longer.batch_size = 4
    told = "Changed since the checkpoint: the training data (1 rows, then 2), the batch size (2, then 4)."
    assert data_changes(saved, longer, "sft") == told


def test_other_transforms_are_told(tmp_path):
    saved = data_record(module(tmp_path / "a.jsonl", transforms=[KeepSource(0.2, ["nothing"])]), "sft")
    same, none = (module(tmp_path / "a.jsonl", transforms=t) for t in ([KeepSource(0.2, ["nothing"])], []))
    assert data_changes(saved, same, "sft") is None
    told = "Changed since the checkpoint: the transforms (KeepSource(share=0.2, texts=['nothing']), then none)."
    assert data_changes(saved, none, "sft") == told


def test_parts_of_a_folder_are_the_data(tmp_path):
    (tmp_path / "part-0.parquet").write_text("a")
    before = data_record(module(tmp_path), "sft")
    (tmp_path / "notes.txt").write_text("b")
    assert data_record(module(tmp_path), "sft") == before
    (tmp_path / ".part-2.parquet.tmp.parquet").write_text("b")
    assert data_record(module(tmp_path), "sft") == before
    (tmp_path / "PART-1.PARQUET").write_text("b")
    assert data_record(module(tmp_path), "sft") != before


def test_the_first_rank_alone_reads_the_data(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("{}\n")
    saved = data_record(module(tmp_path / "a.jsonl"), "sft")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(Path, "open", None)
    changed = module(tmp_path / "b.jsonl")
    assert data_record(changed, "sft") == {}
    assert data_changes(saved, changed, "sft") is None


def test_of_a_curriculum_the_stage_is_looked_at():
    stages = {"one": module("nowhere"), "two": SimpleNamespace(batch_size=3)}
    assert data_record(SimpleNamespace(stages=stages), "two") == {"batch_size": 3}
    assert data_record(SimpleNamespace(stages=stages), "one")["manifest"] is None
    assert data_record(None, "one") == {}
