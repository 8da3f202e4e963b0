import json
import logging
import shutil
from itertools import islice
from types import SimpleNamespace

import cv2
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from icve.data import pair_reading
from icve.data.frame_choice import FrameChoice
from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.media.video import VideoError, write_video
from icve.data.paired_edits import PairedEditsDataModule

BUCKETS = [[48, 64, 9], [64, 48, 9]]


def at_batch(number, share=None, passes=1):
    """A trainer that has done so many micro-batches."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=number))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(distributed_sampler_kwargs=share, accumulate_grad_batches=passes, fit_loop=loop)


def data_module(folder, start_batch=0, **options) -> PairedEditsDataModule:
    options = {"buckets": BUCKETS, "batch_size": 4, "worker_timeout": 60, "cache_in_memory": True, **options}
    module = PairedEditsDataModule(str(folder / "manifest.parquet"), **options)
    module.trainer = at_batch(start_batch)
    return module


def take(module, count):
    return list(islice(module.train_dataloader(), count))


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def broken_folder(pairs_folder, tmp_path):
    """The pairs with three broken ones: a missing source, a truncated target, a link out of the root."""
    folder = tmp_path / "broken"
    shutil.copytree(pairs_folder, folder)
    (folder / "sources" / "2.mp4").unlink()
    target = folder / "targets" / "5.mp4"
    target.write_bytes(target.read_bytes()[:-40])
    (folder / "targets" / "8.mp4").rename(tmp_path / "8.mp4")
    (folder / "targets" / "8.mp4").symlink_to(tmp_path / "8.mp4")
    return folder


def test_batches_are_as_the_contract_says(pairs_folder):
    batches = take(data_module(pairs_folder), 5)
    assert {batch["source"].shape[-2:] for batch in batches} == {(48, 64), (64, 48)}
    for batch in batches:
        assert batch.keys() == {"source", "target", "instruction", "id", "weight", "step_samples"}
        assert batch["weight"] == 1
        for name in ("source", "target"):
            assert batch[name].shape == (4, 3, 9, *batch["source"].shape[-2:])
            assert batch[name].dtype == torch.uint8
            assert batch[name].is_contiguous()
        numbers = [int(name.removeprefix("edit")) for name in batch["id"]]
        assert batch["instruction"] == [f"make it {number + 20}" for number in numbers]
        # each sample is the one its id names, and red, green and blue are where they belong
        greys = batch["target"][:, :, 0].float().mean((2, 3))
        assert greys == pytest.approx(np.array([[16 + 4 * (n + 20)] * 3 for n in numbers]), abs=2)


def test_a_resumed_stream_equals_the_uninterrupted_one(pairs_folder):
    straight = take(data_module(pairs_folder, seed=5), 12)
    assert same(take(data_module(pairs_folder, seed=5, start_batch=7), 5), straight[7:])
    assert not same(take(data_module(pairs_folder, seed=6), 12), straight)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_workers_change_nothing(broken_folder):
    # a thread pool of OpenCV in this process must not hang those forked from it
    threads = cv2.getNumThreads()
    cv2.setNumThreads(2)
    cv2.resize(np.zeros((2000, 2000, 3), np.uint8), (3000, 3000))
    straight = take(data_module(broken_folder, seed=5), 12)
    module = data_module(broken_folder, seed=5, num_workers=2)
    assert same(take(module, 12), straight)
    assert same(take(data_module(broken_folder, seed=5, num_workers=2, start_batch=7), 5), straight[7:])
    assert set(module.dropped) == {"edit2", "edit5", "edit8"}
    cv2.setNumThreads(threads)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_worker_that_hangs_is_an_error(pairs_folder, monkeypatch):
    import time

    module = data_module(pairs_folder, num_workers=1, worker_timeout=2)
    monkeypatch.setattr(PairedEditsDataModule, "read", staticmethod(lambda *_: time.sleep(600)))
    with pytest.raises(RuntimeError, match="timed out"):
        take(module, 1)


def test_a_loader_iterated_again_goes_on_after_what_it_delivered(pairs_folder):
    straight = take(data_module(pairs_folder), 9)
    loader = data_module(pairs_folder).train_dataloader()
    parts = [batch for count in (2, 3, 4) for batch in islice(iter(loader), count)]
    assert same(parts, straight)


def test_processes_load_slices_of_the_same_batches(pairs_folder):
    straight = take(data_module(pairs_folder), 6)
    parts = []
    for rank in range(2):
        module = data_module(pairs_folder)
        module.trainer = at_batch(0, {"num_replicas": 2, "rank": rank})
        parts.append(take(module, 6))
    for whole, first, second in zip(straight, *parts, strict=True):
        assert first["id"] + second["id"] == whole["id"]
        assert torch.equal(torch.cat([first["source"], second["source"]]), whole["source"])


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_steps_batch_is_made_of_micro_batches(pairs_folder, workers, caplog):
    """Five samples of 72 tokens, at most two at once, in five passes: two of them are empty."""
    whole = take(data_module(pairs_folder, seed=5, batch_size=5), 4)
    split = {"seed": 5, "batch_size": 1, "tokens_per_micro_batch": 150, "num_workers": workers}
    module = data_module(pairs_folder, **split)
    module.trainer = at_batch(0, passes=5)
    with caplog.at_level(logging.INFO):
        parts = take(module, 20)
    assert "A step's batch: 48x64x9 5 samples, 2 (144 tokens) at once on each of 1; 64x48x9 5 samples" in caplog.text
    for step, batch in enumerate(whole):
        of_step = parts[5 * step : 5 * step + 5]
        assert [len(part["id"]) for part in of_step] == [0, 1, 0, 2, 2]
        assert [part["weight"] for part in of_step] == [0, 1, 0, 2, 2]
        assert of_step[0] == of_step[2] == {"instruction": [], "id": [], "weight": 0, "step_samples": 5}
        full = [part for part in of_step if part["id"]]
        assert [name for part in full for name in part["id"]] == batch["id"]
        assert torch.equal(torch.cat([part["target"] for part in full]), batch["target"])
    module = data_module(pairs_folder, **split)
    module.trainer = at_batch(8, passes=5)
    assert same(take(module, 7), parts[8:15])


def test_a_bad_row_is_dropped_with_its_reason(pairs_folder, tmp_path):
    rows = [dict(row) for row in read_manifest(pairs_folder / "manifest.parquet")]
    cells = [{"instruction": float("nan")}, {"instruction": ["a", "b"]}, {"instruction": 3}, {"instruction": " "}]
    cells += [{"source_start": -1}, {"fps": "fast"}, {"target_path": "../x.mp4"}]
    rows = [row | dict(cell) for row, cell in zip(rows, [*cells, {}, {}, {}], strict=True)]
    (tmp_path / "manifest.jsonl").write_text("\n".join([*map(json.dumps, rows), "{"]))
    module = PairedEditsDataModule(str(tmp_path / "manifest.jsonl"), BUCKETS, 1, root=str(pairs_folder))
    module.setup("fit")
    assert [pair.id for pair in module.train.pairs] == ["edit7", "edit8", "edit9"]
    assert module.train.rows == 11
    assert len(module.dropped) == 8
    for number, cell in enumerate(cells):
        assert next(iter(cell)) in module.dropped[f"edit{number}"]
    (tmp_path / "manifest.jsonl").write_text(json.dumps(rows[0]))
    with pytest.raises(ValueError, match=r"No row of .* can be used .*the first: instruction in row 1"):
        PairedEditsDataModule(str(tmp_path / "manifest.jsonl"), BUCKETS, 1).setup("fit")


def test_a_bad_file_is_reported_once_and_replaced(broken_folder, caplog):
    module = data_module(broken_folder, seed=5)
    with caplog.at_level(logging.WARNING):
        straight = take(module, 14)
    assert set(module.dropped) == {"edit2", "edit5", "edit8"}
    assert "No such file" in module.dropped["edit2"]
    assert "through a link" in module.dropped["edit8"]
    assert sorted(record.message.split(":")[0] for record in caplog.records) == [f"Dropped edit{i}" for i in (2, 5, 8)]
    seen = {name for batch in straight for name in batch["id"]}
    assert seen == {"edit0", "edit1", "edit3", "edit4", "edit6", "edit7", "edit9"}
    # the replacement does not depend on what was met before
    assert same(take(data_module(broken_folder, seed=5, start_batch=9), 5), straight[9:])
    # and the other samples stay where they were
    whole = [name for batch in take(data_module(broken_folder.parent / "whole", seed=5), 14) for name in batch["id"]]
    for was, now in zip(whole, [name for batch in straight for name in batch["id"]], strict=True):
        assert now == was or was in module.dropped


@pytest.fixture(autouse=True)
def whole_folder(request, pairs_folder, tmp_path):
    """What broken_folder was before it was broken, at its side."""
    if "broken_folder" in request.fixturenames:
        shutil.copytree(pairs_folder, tmp_path / "whole")


def test_data_that_cannot_be_read_at_all_stops_training(pairs_folder, tmp_path):
    shutil.copy(pairs_folder / "manifest.parquet", tmp_path)
    with pytest.raises(ValueError, match=r"32 pairs in a row cannot be read; check the manifest .*No such file"):
        take(data_module(tmp_path), 1)


def test_unusable_rows_are_dropped_with_their_reasons(pairs_folder):
    rows = list(read_manifest(pairs_folder / "manifest.parquet"))
    rows[1]["target_path"] = None
    rows[2]["source_frames"] = 5
    rows[3]["instruction"] = ""
    write_manifest([{k: v for k, v in row.items() if v is not None} for row in rows], pairs_folder / "some.parquet")
    module = PairedEditsDataModule(str(pairs_folder / "some.parquet"), BUCKETS, 4)
    module.setup()
    assert module.dropped == {
        "edit1": "it has no target_path.",
        "edit2": "it has 5 frames, the shortest bucket has 9.",
        "edit3": "it has no instruction.",
    }
    assert module.train.rows == len(module.train.pairs) + len(module.train.dropped) == 10
    with pytest.raises(ValueError, match=r"No row of .* can be used \(10 rows"):
        PairedEditsDataModule(str(pairs_folder / "manifest.parquet"), [[48, 64, 99]], 4).setup()
    with pytest.raises(ValueError, match="at least one bucket"):
        PairedEditsDataModule("m.jsonl", [], 4)


def test_files_are_probed_only_where_columns_are_missing(broken_folder, monkeypatch):
    described = data_module(broken_folder)
    described.setup("fit")
    assert described.dropped == {}
    rows = read_manifest(broken_folder / "manifest.parquet")
    bare = [{k: row[k] for k in ("id", "source_path", "target_path", "instruction")} for row in rows]
    write_manifest(bare, broken_folder / "manifest.parquet")
    probed = data_module(broken_folder)
    probed.setup("fit")
    assert list(probed.dropped) == ["edit2"]
    assert [pair.bucket for pair in probed.train.pairs] == [0] * 7 + [1] * 2


def test_cached_clips_are_decoded_once(pairs_folder, monkeypatch):
    plain = take(data_module(pairs_folder, cache_in_memory=False), 10)
    opened = []
    read = pair_reading.read_frames
    monkeypatch.setattr(pair_reading, "read_frames", lambda path, **kw: (opened.append(path), read(path, **kw))[1])
    assert same(take(data_module(pairs_folder, cache_in_memory=True), 10), plain)
    assert len(opened) == len(set(opened)) == 20  # source and target of ten edits


def test_masks_follow_the_frames(pairs_folder, tmp_path):
    folder = tmp_path / "masked"
    shutil.copytree(pairs_folder, folder)
    rows = list(read_manifest(folder / "manifest.parquet"))
    for row in rows[:5]:
        mask = np.zeros((12, 96, 128), dtype=bool)  # twice the size of the bucket
        for k in range(12):
            mask[k, :, : 8 * (k + 1)] = True
        row["mask_path"] = f"{row['id']}.npz"
        save_mask(folder / row["mask_path"], mask)
    save_mask(folder / rows[4]["mask_path"], mask[:5])
    write_manifest(rows, folder / "manifest.parquet")
    module = data_module(folder, fps=4.0, buckets=[[48, 64, 5], [64, 48, 5]])
    seen = set()
    for batch in take(module, 10):
        assert batch["mask"].shape == (4, 1, 5, *batch["source"].shape[-2:])
        assert batch["mask"].dtype == torch.bool
        for name, mask in zip(batch["id"], batch["mask"], strict=True):
            seen.add(name)
            if name in ("edit0", "edit1", "edit2", "edit3"):  # frames 0, 2, 4, 6, 8 are shown
                assert mask[0].float().mean((1, 2)).tolist() == [4 * (k + 1) / 64 for k in (0, 2, 4, 6, 8)]
            else:
                assert mask.all()
    assert len(seen) == 9
    assert "masks 5 frames" in module.dropped["edit4"]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_validation_is_in_order_and_shared(pairs_folder, world):
    parts = validated(pairs_folder, world)
    order = [f"edit{i}" for i in range(10)]
    if world == 1:
        assert [batch["id"] for batch in parts[0]] == [order[0:3], order[3:6], order[6:8], order[8:10]]
    assert counted(parts) == order
    assert sum(len(batch["id"]) for batches in parts for batch in batches) == 10 + (2 if world == 3 else 0)


def test_what_replaces_an_unreadable_file_in_validation_is_not_counted_again(broken_folder):
    for world in (1, 3):
        assert counted(validated(broken_folder, world)) == [f"edit{i}" for i in (0, 1, 3, 4, 6, 7, 9)]


def validated(folder, world):
    """The validation batches of every process."""
    parts = []
    for rank in range(world):
        module = data_module(folder, val_manifest=str(folder / "manifest.parquet"), batch_size=3)
        module.trainer = at_batch(0, {"num_replicas": world, "rank": rank})
        module.setup("validate")
        assert module.train is None
        parts.append(list(module.val_dataloader()))
    return parts


def counted(parts):
    """Names of the samples that count, in the order of the batches that the processes share."""
    return [
        name
        for shared in zip(*parts, strict=True)
        for batch in shared
        for name, counts in zip(batch["id"], batch["counted"], strict=True)
        if counts
    ]


class Recorder(pl.LightningModule):
    """Trains one number and notes which samples it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.validated = [], []

    def training_step(self, batch, _):
        self.seen.append(batch["id"])
        return self.weight * batch["source"].float().mean()

    def validation_step(self, batch, _):
        self.validated.append(batch["id"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 1e-3)


@pytest.mark.parametrize("options", [{}, {"limit_train_batches": 2}])
def test_the_trainer_sees_the_stream(pairs_folder, options):
    expected = [batch["id"] for batch in take(data_module(pairs_folder, start_batch=2), 6)]
    recorder = Recorder()
    trainer = pl.Trainer(
        max_steps=6,
        max_epochs=-1,
        val_check_interval=None if options else 3,
        check_val_every_n_epoch=None if not options else 1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    val = str(pairs_folder / "manifest.parquet")
    trainer.fit_loop.epoch_loop.batch_progress.total.processed = 2
    trainer.fit(recorder, datamodule=data_module(pairs_folder, val_manifest=None if options else val))
    assert recorder.seen == expected
    assert len(recorder.validated) == (0 if options else 2 * 3)


def test_errors_are_videos_errors_not_crashes(pairs_folder, tmp_path):
    write_video(tmp_path / "short.mp4", np.zeros((4, 48, 64, 3), np.uint8), 8)
    module = data_module(pairs_folder)
    module.setup("fit")
    pair = module.train.pairs[0]
    with pytest.raises(VideoError, match="gives 4 frames, fewer than 9"):
        module.read(tmp_path / "short.mp4", tmp_path / "short.mp4", pair, module.buckets[0], FrameChoice())


@pytest.mark.parametrize(("device", "pins"), [("cpu", False), ("cuda", True)])
def test_batches_are_pinned_for_the_device_that_is_trained_on(pairs_folder, monkeypatch, device, pins):
    """And not because there is another one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    module = data_module(pairs_folder)
    module.trainer.strategy = SimpleNamespace(root_device=torch.device(device))
    assert module.train_dataloader().pin_memory == pins
