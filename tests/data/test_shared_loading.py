"""Batches that processes load together; here threads stand for the processes."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from icve.data.buckets import Draw
from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.share import block_of
from icve.data.shared_loading import OwnDraws, complete
from icve.data.transforms import SourceTransform


class Together:
    """Makes groups of `size` threads that gather from each other as the processes of `SampleGroup` do."""

    def __init__(self, size):
        self.size, self.values, self.barrier = size, [None] * size, threading.Barrier(size)

    def group(self, rank):
        def gather(value):
            self.values[rank] = value
            self.barrier.wait(20)
            values = list(self.values)
            self.barrier.wait(20)
            return values

        return SimpleNamespace(rank=rank, size=self.size, gather=gather, block=lambda turn: (rank - turn) % self.size)

    def run(self, work):
        """What work(group) returns in each thread; an exception is returned, too."""

        def attempt(rank):
            try:
                return work(self.group(rank))
            except Exception as error:
                return error

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(attempt, range(self.size)))


def data_module(folder, group=None, **options):
    options = {"buckets": [[48, 64, 9]], "batch_size": 4, **options}
    module = PairedEditsDataModule(
        str(folder / "manifest.parquet"), val_manifest=f"{folder}/manifest.parquet", **options
    )
    progress = SimpleNamespace(
        epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=3)))
    )
    module.trainer = SimpleNamespace(
        distributed_sampler_kwargs={"rank": 0, "num_replicas": 1},
        accumulate_grad_batches=1,
        fit_loop=progress,
        strategy=SimpleNamespace(sample_group=group),
    )
    return module


def loaded(folder, count=4, **options):
    """A function of a group: training batches from number 3 on, all validation batches, what was dropped."""

    def load(group):
        module = data_module(folder, group, **options)
        train = list(islice(module.train_dataloader(), count))
        return train, list(module.val_dataloader()), module.dropped

    return load


def with_masks_and_broken_files(folder, copy):
    """The pairs, some of them with a mask, two of them unreadable."""
    shutil.copytree(folder, copy)
    rows = list(read_manifest(copy / "manifest.parquet"))
    for row in rows[:3]:
        save_mask(copy / f"{row['id']}.npz", np.arange(12)[:, None, None] % 3 == np.zeros((1, 48, 64)))
    for number, row in enumerate(rows):
        row["mask_path"] = f"{row['id']}.npz" if number < 3 else None
    write_manifest(rows, copy / "manifest.parquet")
    (copy / "sources" / "2.mp4").unlink()
    target = copy / "targets" / "5.mp4"
    target.write_bytes(target.read_bytes()[:-40])
    return copy


def assert_same_together(alone, together):
    """Every member knows all lists of the batches, and their parts are the tensors."""
    for number, whole in enumerate(alone):
        seen = [batches[number] for batches in together]
        for batch in seen:
            lists = {name: value for name, value in whole.items() if not isinstance(value, torch.Tensor)}
            assert {name: value for name, value in batch.items() if name in lists} == lists
            assert batch["shared"].keys() == whole.keys() - lists.keys()
        for name, (dtype, shape, parts) in seen[0]["shared"].items():
            assert all(batch["shared"][name] == seen[0]["shared"][name] for batch in seen)
            tensors = [seen[rank][name] for rank, _ in parts]
            assert [len(tensor) for tensor in tensors] == [count for _, count in parts]
            assert torch.equal(torch.cat(tensors), whole[name])
            assert (dtype, shape) == (whole[name].dtype, whole[name].shape[1:])


@pytest.mark.parametrize(("size", "batch"), [(2, 4), (3, 4), (3, 1), (2, 5)])
def test_a_group_loads_what_one_process_loads(pairs_folder, tmp_path, size, batch):
    """With masks and unreadable files, which are replaced by the same pairs and reported to all."""
    folder = with_masks_and_broken_files(pairs_folder, tmp_path / "pairs")
    train, val, dropped = loaded(folder, batch_size=batch, count=6)(None)
    together = Together(size).run(loaded(folder, batch_size=batch, count=6))
    assert_same_together(train, [seen[0] for seen in together])
    assert_same_together(val, [seen[1] for seen in together])
    assert not all(all(seen["counted"]) for seen in val)
    assert "mask" in train[0]
    assert dropped
    assert all(seen[2] == dropped for seen in together)


def test_each_clip_is_decoded_once(pairs_folder, monkeypatch):
    from icve.data import pair_dataset

    opened, load = [], pair_dataset.load_pair
    monkeypatch.setattr(pair_dataset, "load_pair", lambda pair, *rest: opened.append(pair.id) or load(pair, *rest))
    train, val, _ = loaded(pairs_folder)(None)
    alone = sorted(opened)
    opened.clear()
    Together(3).run(loaded(pairs_folder))
    assert sorted(opened) == alone
    assert len(alone) == sum(len(batch["id"]) for batch in [*train, *val])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_of_a_group_take_turns(workers):
    """With one sample in a batch, each of a process's workers has work at the same rate."""
    batches = [[Draw(number, number, 0)] for number in range(4 * 6)]
    shares = [list(OwnDraws(batches, Together(4).group(rank), workers)) for rank in range(4)]
    assert [[draw for part in parts for draw in part] for parts in zip(*shares, strict=True)] == batches
    for share in shares:
        for worker in range(max(1, workers)):
            assert sum(map(len, share[worker :: max(1, workers)])) == 6 // max(1, workers)


def test_blocks_are_in_order_and_even():
    for count in range(9):
        blocks = [block_of(count, block, 4) for block in range(4)]
        assert [number for block in blocks for number in block] == list(range(count))
        assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_what_one_cannot_load_ends_all_with_its_reason(pairs_folder, tmp_path):
    folder = tmp_path / "pairs"
    shutil.copytree(pairs_folder, folder)
    shutil.rmtree(folder / "targets")
    errors = Together(3).run(loaded(folder, batch_size=1))
    assert {type(error) for error in errors} == {ValueError}
    assert len({str(error) for error in errors}) == 1
    assert "32 pairs in a row cannot be read" in str(errors[0])


class CutSome(SourceTransform):
    def __call__(self, sample, rng):
        return {**sample, "source": sample["source"][:, : 5 if rng.random() < 0.5 else 9]}


def test_sources_of_different_lengths_are_refused_by_all(pairs_folder):
    errors = Together(4).run(loaded(pairs_folder, transforms=[CutSome()]))
    assert {type(error) for error in errors} == {ValueError}
    assert "must change all of a step alike (per_step)" in str(errors[0])


def test_a_failed_worker_ends_the_others():
    def load(group):
        def parts():
            yield {"instruction": [], "id": [], "dropped": []}
            if group.rank == 1:
                raise RuntimeError("a worker hangs.")
            yield {"instruction": [], "id": [], "dropped": []}

        return list(complete(parts(), group, 0, 1))

    others, failed = Together(2).run(load)
    assert (type(others), str(others)) == (RuntimeError, "Another process cannot load its part: a worker hangs.")
    assert str(failed) == "a worker hangs."
