import json
import logging
from collections import Counter
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from icve.data.buckets import Draw
from icve.data.manifest import Manifest, read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.mixture import DataSet, as_data_sets
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.unpaired_clips import UnpairedClipsDataModule

BUCKETS = [[48, 64, 9], [64, 48, 9], [48, 64, 1]]


def at_batch(number, share=None, passes=1):
    """A trainer that has done so many micro-batches."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=number))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    return SimpleNamespace(distributed_sampler_kwargs=share, accumulate_grad_batches=passes, fit_loop=loop)


@pytest.fixture(scope="module")
def pictures_folder(tmp_path_factory):
    """Six image edits, PNG and JPEG, 64x48; picture n is grey 16 + 4n, its target 20 steps brighter."""
    folder = tmp_path_factory.mktemp("pictures")
    rows = []
    for n in range(6):
        suffix = (".png", ".jpg")[n % 2]
        for kind, first in (("source", n), ("target", n + 20)):
            Image.new("RGB", (64, 48), (16 + 4 * first,) * 3).save(folder / f"{kind}{n}{suffix}")
        row = {"id": f"edit{n}", "source_path": f"source{n}{suffix}", "target_path": f"target{n}{suffix}"}
        # Some are described, some probed.
        size = {"width": 64, "height": 48, "frames": 1} if n < 3 else {}
        rows.append(row | size | {"instruction": f"make it {n + 20}", "edit_type": ("tone", "other")[n // 4]})
    (folder / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def entries(pictures_folder, pairs_folder):
    return [
        {"manifest": str(pairs_folder / "manifest.parquet"), "name": "videos", "weight": 0.75},
        {"manifest": str(pictures_folder / "pictures.jsonl"), "weight": 0.25, "prefix": "In this picture, "}
        | {"loss_weight": 0.5, "edit_types": ["tone"]},
    ]


def module(entries, start_batch=0, passes=1, share=None, **options):
    options = {"buckets": BUCKETS, "batch_size": 4, "cache_in_memory": True, "fps": 8.0, **options}
    data = PairedEditsDataModule(mixture=entries, **options)
    data.trainer = at_batch(start_batch, share, passes)
    return data


def take(data, count):
    return list(islice(data.train_dataloader(), count))


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_pictures_and_videos_in_one_run(entries, caplog):
    with caplog.at_level(logging.INFO):
        batches = take(module(entries), 16)
    assert "pictures: 4 of 6 rows have its edit_types" in caplog.text
    assert "pictures: 4 of 4 rows used: 0 in 48x64x9, 0 in 64x48x9, 4 in 48x64x1." in caplog.text
    assert "videos has 0.75 of all samples (0.6 in 48x64x9, 0.15 in 64x48x9); pictures has 0.25" in caplog.text
    counts = Counter(name for batch in batches for name in batch["data_set"])
    assert counts == {"videos": 48, "pictures": 16}
    for batch in batches:
        frames = batch["source"].shape[2]
        assert set(batch["data_set"]) == {"pictures" if frames == 1 else "videos"}
        assert batch["loss_weight"] == [0.5 if frames == 1 else 1.0] * 4
        for name, words, target in zip(batch["id"], batch["instruction"], batch["target"], strict=True):
            number = int(name.removeprefix("edit"))
            assert words == ("In this picture, " if frames == 1 else "") + f"make it {number + 20}"
            assert float(target[:, 0].float().mean()) == pytest.approx(16 + 4 * (number + 20), abs=2)


def test_a_batch_mixes_data_sets_and_all_samples_have_masks_if_some_do(pairs_folder, entries):
    rows = [dict(row) for row in read_manifest(pairs_folder / "manifest.parquet")][:4]
    for row in rows:
        row["mask_path"] = f"{row['id']}.npz"
        save_mask(pairs_folder / row["mask_path"], np.zeros((12, 48, 64), bool))
    masked = write_manifest(rows, pairs_folder / "masked.jsonl")
    for batch in take(module([DataSet(str(masked)), entries[0] | {"weight": 1}], buckets=BUCKETS[:1]), 4):
        assert Counter(batch["data_set"]) == {"masked": 2, "videos": 2}
        assert [bool(mask.any()) for mask in batch["mask"]] == [name == "videos" for name in batch["data_set"]]


def test_a_resumed_mixture_equals_the_uninterrupted_one(entries):
    straight = take(module(entries, seed=5), 12)
    first = module(entries, seed=5)
    take(first, 7)
    first.trainer = at_batch(7)
    second = module(entries, seed=5, start_batch=7)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert same(take(second, 5), straight[7:])
    # The state only matters where the mixture has changed.
    assert same(take(module(entries, seed=5, start_batch=7), 5), straight[7:])


def test_other_weights_go_on_from_there_and_are_said_once(entries, caplog):
    first = module(entries, seed=5)
    before = [name for batch in take(first, 12) for name in batch["id"] if len(batch["source"][0, 0]) == 1]
    first.trainer = at_batch(12)
    state = first.state_dict()
    assert state["mixture"]["drawn"]["pictures"] == {"48x64x9": 0, "64x48x9": 0, "48x64x1": 12}
    changed = [entries[0] | {"weight": 0.5}, entries[1] | {"weight": 0.5}]
    second = module(changed, seed=5, start_batch=12)
    second.load_state_dict(state)
    with caplog.at_level(logging.INFO):
        batches = take(second, 8)
    changes = [record.message for record in caplog.records if "changes" in record.message]
    assert changes == [
        "The mixture changes at step 12, from weights videos 0.75, pictures 0.25 to videos 0.5, pictures 0.5; drawn so "
        "far: videos 36, pictures 12."
    ]
    after = [name for batch in batches for name in batch["id"] if len(batch["source"][0, 0]) == 1]
    assert len(before) == 12
    assert len(after) == 16
    for epoch in range(7):
        assert len(set((before + after)[4 * epoch : 4 * epoch + 4])) == 4
    # The change is a part of the state from then on.
    second.trainer = at_batch(16)
    third = module(changed, seed=5, start_batch=16)
    third.load_state_dict(second.state_dict())
    assert same(take(third, 4), batches[4:])
    assert third.state_dict()["mixture"]["since"] == 12
    assert not [record for record in caplog.records[len(changes) :] if "changes at step 16" in record.message]


def test_a_mixture_does_not_change_in_the_middle_of_a_step(entries):
    first = module(entries, passes=2)
    take(first, 3)
    first.trainer = at_batch(3, passes=2)
    second = module([entries[0], entries[1] | {"weight": 1.0}], start_batch=3, passes=2)
    second.load_state_dict(first.state_dict())
    with pytest.raises(ValueError, match="middle of a step"):
        second.train_dataloader()


def test_processes_and_passes_share_the_same_batches(entries):
    whole = take(module(entries), 6)
    parts = [take(module(entries, share={"num_replicas": 2, "rank": rank}), 6) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert first["id"] + second["id"] == batch["id"]
        assert first["data_set"] + second["data_set"] == batch["data_set"]
    split = take(module(entries, passes=2, batch_size=2), 12)
    for batch, first, second in zip(whole, split[::2], split[1::2], strict=True):
        assert first["id"] + second["id"] == batch["id"]


def test_an_unreadable_row_is_replaced_from_its_own_data_set(entries, pictures_folder):
    lines = (pictures_folder / "pictures.jsonl").read_text().splitlines()
    rows = [json.loads(line) | {"width": 64, "height": 48, "frames": 1} for line in lines]
    rows[1]["source_path"] = "missing.png"
    (pictures_folder / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = module([entries[0], {"manifest": str(pictures_folder / "some.jsonl"), "weight": 0.75}])
    batches = take(data, 12)
    assert list(data.dropped) == ["some/edit1"]
    assert Counter(name for batch in batches for name in batch["data_set"]) == {"videos": 24, "some": 24}
    assert "edit1" not in [name for batch in batches if "some" in batch["data_set"] for name in batch["id"]]


def test_without_a_mixture_nothing_is_kept_in_checkpoints(pairs_folder):
    data = PairedEditsDataModule(str(pairs_folder / "manifest.parquet"), BUCKETS[:2], 4)
    data.trainer = at_batch(0)
    (batch,) = take(data, 1)
    assert data.state_dict() == {}
    assert batch.keys() == {"source", "target", "instruction", "id", "weight", "step_samples"}


def test_what_is_no_mixture_is_refused(entries, pairs_folder, pictures_folder):
    manifest = str(pairs_folder / "manifest.parquet")
    with pytest.raises(ValueError, match="either manifest or mixture, not both"):
        PairedEditsDataModule(manifest, BUCKETS, 4, mixture=entries)
    with pytest.raises(ValueError, match="either manifest or mixture, for neither is set"):
        PairedEditsDataModule(buckets=BUCKETS, batch_size=4)
    with pytest.raises(ValueError, match="Give batch_size"):
        PairedEditsDataModule(manifest, BUCKETS)
    with pytest.raises(ValueError, match="Two data sets of the mixture are named 'a'"):
        as_data_sets([{"manifest": "x/a.jsonl"}, {"manifest": "y/a.parquet"}])
    with pytest.raises(ValueError, match="mixture is empty"):
        as_data_sets([])
    with pytest.raises(ValueError, match="weight of the data set 'a' must be at least 0, got -1"):
        DataSet("a.jsonl", weight=-1)
    with pytest.raises(ValueError, match="edit_types of the data set 'a' is empty"):
        DataSet("a.jsonl", edit_types=[])
    with pytest.raises(ValueError, match="has an edit_type of sky; it has other, tone"):
        module([{"manifest": str(pictures_folder / "pictures.jsonl"), "edit_types": ["sky"]}]).setup("fit")
    with pytest.raises(ValueError, match="has no column 'edit_type'"):
        module([{"manifest": manifest, "edit_types": ["sky"]}]).setup("fit")


def test_an_empty_instruction_stays_empty():
    rows = Manifest([{"id": "1", "instruction": " "}, {"id": "2", "instruction": "x"}], ".")
    assert [row["instruction"] for row in DataSet("a.jsonl", prefix="Do ").of(rows)] == [" ", "Do x"]
    assert rows[1]["instruction"] == "x"  # the manifest is as it was


def test_a_data_set_has_its_own_columns_and_root(pairs_folder, tmp_path, entries):
    rows = [dict(row) for row in read_manifest(pairs_folder / "manifest.parquet")]
    renamed = [{"words": row.pop("instruction"), **row} for row in rows]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
    own = {"manifest": str(tmp_path / "m.jsonl"), "root": str(pairs_folder), "columns": {"words": "instruction"}}
    (batch,) = take(module([own, entries[0]], buckets=BUCKETS[:2]), 1)
    assert Counter(batch["data_set"]) == {"m": 2, "videos": 2}


def test_draws_are_those_of_the_rows_own_data_set(entries):
    data = module(entries)
    dataset = data.train_dataloader().dataset
    assert len(dataset) == 14
    assert dataset[Draw(10, 0, 0)]["id"] == "edit0"
    assert dataset[Draw(10, 0, 0)]["data_set"] == "pictures"
    assert dataset[Draw(9, 0, 0)]["data_set"] == "videos"


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_workers_change_nothing(entries):
    assert same(take(module(entries, num_workers=2, worker_timeout=60), 6), take(module(entries), 6))


def test_unpaired_clips_can_be_mixed(entries, caplog):
    data = UnpairedClipsDataModule(mixture=entries, buckets=BUCKETS, batch_size=4)
    data.trainer = at_batch(0)
    assert Counter(name for batch in take(data, 4) for name in batch["data_set"]) == {"videos": 12, "pictures": 4}
