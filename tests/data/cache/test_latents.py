"""The cache's files and what training reads from them; tests/cli/test_encode.py has the commands."""

import json
import pickle
import shutil
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from icve.data.buckets import Bucket
from icve.data.cache.latents import LatentCache, Record, ShardWriter, request_of
from icve.data.cache.record_index import RecordIndex
from icve.data.cache.requests import requests_of
from icve.data.edit_region import region_from_mask
from icve.data.encoding import Encoders, encode_pairs, find_work
from icve.data.manifest import read_manifest, write_manifest
from icve.data.manifest_table import Manifest
from icve.data.masks import save_mask
from icve.data.paired_edits import PairedEditsDataModule
from icve.data.selection import select
from icve.data.text_condition import TextCondition
from icve.models.weightless.dct import DCTCodec
from icve.models.weightless.hashed import HashedTextEncoder
from tests.texts import assert_same_text, parts

BUCKETS = [[48, 64, 9], [64, 48, 9]]


def data_module(folder, **options) -> PairedEditsDataModule:
    options = {"buckets": BUCKETS, "batch_size": 4, "worker_timeout": 60, **options}
    return PairedEditsDataModule(str(folder / "manifest.parquet"), **options)


def fill(folder, data, codec=None, precision="float32", **limits):
    """Encode a data module's pairs; returns the cache, the number of pairs encoded and the rejected records."""
    encoders = Encoders(codec or DCTCodec(), HashedTextEncoder(12, 10), "cpu")
    cache = LatentCache.create(folder, encoders.codec, encoders.text_encoder, precision, lambda: encoders.text(""))
    with ShardWriter(cache, (1, 1), **limits) as writer:
        work = find_work(data, cache, (1, 1))
        encoded = encode_pairs(work, data, cache, encoders, writer)
    return cache, encoded, work.rejected


@pytest.fixture(scope="module")
def cache_once(pairs_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    fill(folder, data_module(pairs_folder))
    return folder


@pytest.fixture
def folder(pairs_folder, tmp_path):
    """Pairs that a test may spoil."""
    shutil.copytree(pairs_folder, tmp_path / "pairs")
    return tmp_path / "pairs"


def records(cache) -> dict[str, Record]:
    return {record.id: record for record in cache.records()}


def take(module, count):
    return list(islice(module.train_dataloader(), count))


def equal(ours, theirs) -> bool:
    if isinstance(ours, TextCondition):
        return all(map(torch.equal, parts(ours), parts(theirs)))
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def same(ours, theirs) -> bool:
    return len(ours) == len(theirs) and all(
        a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a) for a, b in zip(ours, theirs, strict=True)
    )


def test_batches_hold_what_the_encoders_make_of_the_same_pairs(pairs_folder, cache_once):
    codec, text_encoder = DCTCodec(), HashedTextEncoder(12, 10)
    pixels, cached = data_module(pairs_folder, seed=5), data_module(pairs_folder, seed=5, latents=str(cache_once))
    for of_pixels, batch in zip(take(pixels, 6), take(cached, 6), strict=True):
        assert batch["id"] == of_pixels["id"]
        assert batch["instruction"] == of_pixels["instruction"]
        for role in ("source", "target"):
            assert torch.equal(batch[role], codec.encode(of_pixels[role].float() / 127.5 - 1))
        for number, instruction in enumerate(batch["instruction"]):
            assert_same_text(batch["text"][number], text_encoder.encode([instruction]))
        assert_same_text(batch["no_text"], text_encoder.encode([""]))
        assert "region" not in batch


def test_bfloat16_rounds_once(pairs_folder, cache_once, tmp_path):
    cache, _, _ = fill(tmp_path, data_module(pairs_folder), precision="bfloat16")
    exact = LatentCache(cache_once)
    for name, record in records(cache).items():
        tensors, truth = cache.read(record), exact.read(records(exact)[name])
        assert_same_text(tensors.pop("text"), truth["text"].to(dtype=torch.bfloat16))
        for role, tensor in tensors.items():
            assert tensor.dtype == torch.bfloat16
            assert torch.equal(tensor, truth[role].bfloat16())


def test_validation_comes_from_the_cache_in_order(pairs_folder, cache_once):
    manifest = str(pairs_folder / "manifest.parquet")
    module = data_module(pairs_folder, val_manifest=manifest, latents=str(cache_once), batch_size=3)
    module.setup("validate")
    batches = list(module.val_dataloader())
    assert [name for batch in batches for name in batch["id"]] == [f"edit{i}" for i in range(10)]
    assert all(batch["source"].is_floating_point() for batch in batches)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_workers_and_memory_change_nothing(pairs_folder, cache_once):
    options = {"seed": 5, "latents": str(cache_once)}
    straight = take(data_module(pairs_folder, **options), 12)
    assert same(take(data_module(pairs_folder, num_workers=2, **options), 12), straight)
    assert same(take(data_module(pairs_folder, cache_in_memory=True, **options), 12), straight)


def test_regions_of_masks_are_kept(folder, tmp_path):
    rows = list(read_manifest(folder / "manifest.parquet"))
    for number, row in enumerate(rows[:3]):
        mask = np.zeros((12, 48, 64), dtype=bool)
        mask[number:, 8 * number : 8 * number + 20, 30:40] = True
        row["mask_path"] = f"{row['id']}.npz"
        save_mask(folder / row["mask_path"], mask)
    write_manifest(rows, folder / "manifest.parquet")
    cache, _, _ = fill(tmp_path / "cache", data_module(folder), precision="bfloat16")
    pixels, cached = data_module(folder), data_module(folder, latents=str(cache.folder))
    seen = set()
    for of_pixels, batch in zip(take(pixels, 6), take(cached, 6), strict=True):
        assert batch["region"].dtype == torch.bool
        assert torch.equal(batch["region"], region_from_mask(of_pixels["mask"], batch["target"].shape[2:]))
        seen |= {name for name, region in zip(batch["id"], batch["region"], strict=True) if not region.all()}
    assert seen == {"edit0", "edit1", "edit2"}


def test_a_shard_holds_one_bucket_and_so_many_pairs_or_bytes(pairs_folder, cache_once, tmp_path):
    def pairs_per_shard(**limits):
        cache, _, _ = fill(tmp_path / str(limits), data_module(pairs_folder), **limits)
        count = {}
        for record in cache.records():
            count.setdefault(record.shard.parent.name, {}).setdefault(record.shard.name, []).append(record.id)
        return {bucket: sorted(map(len, shards.values())) for bucket, shards in count.items()}

    assert pairs_per_shard() == {"48x64x9": [8], "64x48x9": [2]}
    assert pairs_per_shard(pairs=3) == {"48x64x9": [2, 3, 3], "64x48x9": [2]}
    pair = LatentCache(cache_once).read(records(LatentCache(cache_once))["edit0"])
    of_pair = sum(tensor.nbytes for tensor in (pair["source"], pair["target"], *pair["text"].tensors("text").values()))
    assert pairs_per_shard(size=4 * of_pair) == {"48x64x9": [4, 4], "64x48x9": [2]}


def test_an_error_keeps_what_was_encoded(pairs_folder, tmp_path):
    class Failing(DCTCodec):
        calls = 0

        def encode(self, video):
            Failing.calls += 1
            if Failing.calls > 9:
                raise RuntimeError("out of memory")
            return super().encode(video)

    with pytest.raises(RuntimeError, match="out of memory"):
        fill(tmp_path, data_module(pairs_folder), Failing())
    kept = records(LatentCache(tmp_path))
    assert list(kept) == ["edit0", "edit1", "edit2", "edit3"]
    Failing.calls = -100
    assert fill(tmp_path, data_module(pairs_folder), Failing())[1] == 6


def test_latents_that_are_not_finite_are_rejected(folder, tmp_path):
    class Overflowing(DCTCodec):
        def encode(self, video):
            bright = video.mean() > -0.4  # targets of later rows
            return super().encode(video) * (torch.inf if bright else 1.0)

    cache, encoded, rejected = fill(tmp_path / "cache", data_module(folder), Overflowing())
    assert encoded + len(rejected) == 10
    assert rejected
    assert all("its encoded target is not finite" in record.reason for record in rejected)
    assert {r.id for r in cache.records() if r.reason} == {record.id for record in rejected}


def test_a_changed_video_is_replaced_as_an_unreadable_one(folder, tmp_path):
    cache, _, _ = fill(tmp_path / "cache", data_module(folder))
    shutil.copy(folder / "targets" / "1.mp4", folder / "targets" / "5.mp4")
    cached = data_module(folder, seed=5, latents=str(cache.folder))
    batches = take(cached, 12)
    assert list(cached.dropped) == ["edit5"]
    assert "5.mp4 is not the file that was encoded" in cached.dropped["edit5"]
    assert "icve encode" in cached.dropped["edit5"]
    (folder / "targets" / "5.mp4").unlink()
    pixels = data_module(folder, seed=5)
    assert [batch["id"] for batch in take(pixels, 12)] == [batch["id"] for batch in batches]
    shutil.copy(folder / "targets" / "1.mp4", folder / "targets" / "5.mp4")
    assert fill(cache.folder, data_module(folder))[1] == 1
    again = data_module(folder, seed=5, latents=str(cache.folder))
    take(again, 12)
    assert again.dropped == {}


def test_data_that_was_moved_or_copied_is_known(pairs_folder, cache_once, tmp_path):
    shutil.copytree(pairs_folder, tmp_path / "elsewhere", copy_function=shutil.copyfile)  # with new times
    module = data_module(tmp_path / "elsewhere", latents=str(cache_once))
    take(module, 12)
    assert module.dropped == {}
    work = find_work(data_module(tmp_path / "elsewhere"), LatentCache(cache_once), (1, 1))
    assert (work.reused, work.jobs) == (10, [])


def test_rows_that_name_another_missing_file_are_not_trusted(folder, tmp_path):
    cache, _, _ = fill(tmp_path / "cache", data_module(folder))
    rows = list(read_manifest(folder / "manifest.parquet"))
    rows[3]["source_path"] = "sources/other.mp4"
    write_manifest(rows, folder / "manifest.parquet")
    module = data_module(folder, latents=str(cache.folder))
    take(module, 12)
    assert "it names sources/other.mp4 now; sources/3.mp4 was encoded" in module.dropped["edit3"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"instruction": "something else"}, "instruction make it 22, asked for is something else"),
        ({"source_start": 1}, "source_start 0, asked for is 1"),
        ({"target_frames": 11}, "target_frames 12, asked for is 11"),
        ({"id": "new"}, "the first, new: it was not encoded"),
    ],
)
def test_rows_that_were_encoded_otherwise_are_refused(folder, tmp_path, change, told):
    cache, _, _ = fill(tmp_path / "cache", data_module(folder))
    rows = list(read_manifest(folder / "manifest.parquet"))
    rows[2] |= change
    write_manifest(rows, folder / "manifest.parquet")
    module = data_module(folder, latents=str(cache.folder))
    with pytest.raises(ValueError, match="lacks 1 of the 10 pairs") as refused:
        module.setup("fit")
    assert told in str(refused.value)
    assert f"icve encode -c CONFIG.yaml --output {cache.folder}" in str(refused.value)
    assert fill(cache.folder, data_module(folder))[1] == 1
    module.setup("fit")


def test_keys_tell_clips_files_and_encoders_apart(pairs_folder, cache_once, tmp_path):
    def keys(name, codec=None, **options):
        return {r.key for r in fill(tmp_path / name, data_module(pairs_folder, **options), codec)[0].records()}

    whole = {record.key for record in LatentCache(cache_once).records()}
    assert len(whole) == 10
    assert keys("again") == whole
    others = [
        keys("bucket", buckets=[[32, 48, 9]]),
        keys("length", buckets=[[48, 64, 5], [64, 48, 5]]),
        keys("rate", fps=4.0, buckets=[[48, 64, 5], [64, 48, 5]]),
        keys("codec", DCTCodec(scales=[2.0] * 16)),
    ]
    assert len(whole.union(*others)) == 50


def test_a_half_downloaded_shard_is_named(cache_once, pairs_folder, tmp_path):
    shutil.copytree(cache_once, tmp_path / "cache")
    (shard,) = (tmp_path / "cache" / "48x64x9").iterdir()
    shard.write_bytes(shard.read_bytes()[:-100])
    module = data_module(pairs_folder, latents=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="is missing or damaged") as refused:
        module.setup("fit")
    assert str(shard) in str(refused.value)
    shard.unlink()
    assert fill(tmp_path / "cache", data_module(pairs_folder))[1] == 8


def test_a_shard_that_vanishes_costs_its_pairs_only(pairs_folder, tmp_path):
    cache, _, _ = fill(tmp_path, data_module(pairs_folder), pairs=3)
    module = data_module(pairs_folder, latents=str(tmp_path))
    module.setup("fit")
    shard = records(cache)["edit0"].shard
    lost = {record.id for record in cache.records() if record.shard == shard}
    shard.unlink()
    seen = {name for batch in take(module, 20) for name in batch["id"]}
    assert lost == {"edit0", "edit1", "edit2"}
    assert set(module.dropped) == lost
    assert seen == {f"edit{i}" for i in range(3, 10)}
    assert all("is missing or damaged" in reason for reason in module.dropped.values())


@pytest.mark.parametrize("name", ["latents.json", "no_instruction.safetensors"])
def test_other_damage_is_one_sentence(cache_once, pairs_folder, tmp_path, name):
    shutil.copytree(cache_once, tmp_path / "cache")
    (tmp_path / "cache" / name).write_bytes(b"{")
    with pytest.raises(ValueError, match="damaged"):
        take(data_module(pairs_folder, latents=str(tmp_path / "cache")), 1)


def test_another_format_is_refused(cache_once, tmp_path):
    shutil.copytree(cache_once, tmp_path / "cache")
    info = json.loads((tmp_path / "cache" / "latents.json").read_text())
    (tmp_path / "cache" / "latents.json").write_text(json.dumps(info | {"format": 1}))  # as decord had read the videos
    with pytest.raises(ValueError, match="has format 1, this version reads 3: encode again, into another folder"):
        LatentCache(tmp_path / "cache")


def test_the_newest_record_comes_first_and_rejections_last(cache_once):
    record = records(LatentCache(cache_once))["edit0"]
    base = record.to_json()
    made = [Record.from_json(base | {"encoded": time, "reason": reason}) for time, reason in
            ((1, None), (9, "broken"), (5, None))]  # fmt: skip
    found = RecordIndex(made, cache_once).find(SimpleNamespace(id="edit0"), record.request)
    assert [r.encoded for r in found] == [5, 1, 9]
    assert Record.from_json(json.loads(json.dumps(base)), record.shard) == record


def test_shards_are_plain_safetensors(cache_once):
    (shard,) = (cache_once / "64x48x9").iterdir()
    tensors = load_file(shard)
    assert {name.split(".", 1)[1] for name in tensors} == {"source", "target", "text", "text.pooled"}
    assert {tuple(t.shape) for name, t in tensors.items() if name.endswith("source")} == {(16, 3, 8, 6)}
    assert not list(cache_once.rglob("*.tmp"))


def test_many_requests_are_those_of_single_pairs(pairs_folder):
    rows = list(read_manifest(pairs_folder / "manifest.parquet"))
    words = ["make it 22", 'say "no"', "é 青い", "back\\slash", "line\nbreak", "\x7f do", "-101 @mask@"]
    for row, text in zip(rows, words, strict=False):
        row["instruction"] = text
    rows[1] |= {"source_start": 2, "mask_path": "a.npz"}
    rows[2] |= {"target_start": 1, "target_frames": None}
    rows[3] |= {"source_frames": None, "frames": 12, "mask_path": "b.npz"}
    selection = select(Manifest(rows, pairs_folder), buckets := [Bucket.parse(bucket) for bucket in BUCKETS])
    ((_, batch),) = selection.manifest.batches_at(selection.numbers)
    for fps in (None, 4.0):
        asked = requests_of(batch, selection.buckets, buckets, fps, PairedEditsDataModule.read)
        pairs = list(selection.pairs)
        assert len(pairs) == 10
        read = PairedEditsDataModule.read
        assert asked.to_pylist() == [request_of(pair, buckets[pair.bucket], fps, read) for pair in pairs]


@pytest.fixture
def indexed(monkeypatch, tmp_path):
    """Caches of any size have an index; the files whose records are read are noted."""
    monkeypatch.setattr("icve.data.cache.record_index._FEW", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    opened, read = [], LatentCache.records_in
    monkeypatch.setattr(LatentCache, "records_in", lambda cache, file: opened.append(file.name) or read(cache, file))
    return opened


def test_the_index_is_made_once_and_reads_what_is_new(pairs_folder, folder, tmp_path, indexed):
    cache, _, _ = fill(tmp_path / "cache", data_module(pairs_folder), pairs=3)
    plain = take(data_module(pairs_folder, seed=5, latents=str(cache.folder)), 8)
    indexed.clear()
    assert same(take(data_module(pairs_folder, seed=5, latents=str(cache.folder)), 8), plain)
    assert indexed == []
    index = RecordIndex.of(cache)
    again = pickle.loads(pickle.dumps(index))
    expected = {name: [record] for name, record in records(cache).items()}
    for name, of_row in expected.items():
        for one in (index, again):
            assert one.find(SimpleNamespace(id=name), of_row[0].request) == of_row
    assert index.find(SimpleNamespace(id="edit"), "") == []
    # A row that changes is encoded again: its shard alone is read, and its record comes first.
    rows = list(read_manifest(folder / "manifest.parquet"))
    shutil.copy(folder / "targets" / "1.mp4", folder / "targets" / "5.mp4")
    write_manifest(rows, folder / "manifest.parquet")
    assert fill(cache.folder, data_module(folder))[1] == 1
    indexed.clear()
    found = RecordIndex.of(cache).find(SimpleNamespace(id="edit5"), expected["edit5"][0].request)
    assert len(indexed) == 1
    assert len(found) == 2
    assert found[1] == expected["edit5"][0]
    shards = {record.shard for record in cache.records() if record.id == "edit0"}
    shards.pop().unlink()
    with pytest.raises(ValueError, match="lacks 3 of the 10 pairs"):
        take(data_module(pairs_folder, latents=str(cache.folder)), 1)


@pytest.mark.parametrize("harm", ["truncated", "nothing", "folder"])
def test_an_index_that_is_damaged_or_cannot_be_written_is_done_without(pairs_folder, tmp_path, indexed, harm):
    cache, _, _ = fill(tmp_path / "cache", data_module(pairs_folder), pairs=3)
    options = {"seed": 5, "latents": str(cache.folder)}
    plain = take(data_module(pairs_folder, **options), 4)
    file = cache.folder / ".records.arrow"
    content = file.read_bytes()
    file.unlink()
    if harm == "folder":
        file.mkdir()
        (file / "x").touch()
    else:
        file.write_bytes(content[:-100] if harm == "truncated" else b"")
    assert same(take(data_module(pairs_folder, **options), 4), plain)
    assert list((tmp_path / "xdg").rglob("*.arrow")) if harm == "folder" else file.read_bytes()[:6] == content[:6]


def test_sizes_of_rows_come_from_the_cache(folder, tmp_path, indexed):
    cache, _, _ = fill(tmp_path / "cache", data_module(folder))
    rows = list(read_manifest(folder / "manifest.parquet"))
    bare = [{name: value for name, value in row.items() if name not in ("width", "height", "fps")} for row in rows]
    write_manifest(bare, folder / "manifest.parquet")
    shutil.rmtree(folder / "sources")
    module = data_module(folder, fps=8.0)
    known = select(module.rows(module.manifest), module.buckets, 8.0, RecordIndex.of(cache).videos)
    assert [pair.bucket for pair in known.pairs] == [0] * 8 + [1] * 2
    assert len(select(module.rows(module.manifest), module.buckets, 8.0).pairs) == 0
