from collections import Counter
from itertools import islice

import pytest

from icve.data.buckets import Bucket, BucketBatchSampler, Draw, choose_bucket, replacement

MEMBERS = [list(range(12)), [], list(range(12, 18)), [18, 19]]


def batches(count: int, **options):
    return list(islice(BucketBatchSampler(MEMBERS, 4, **options), count))


def test_a_batch_is_a_pure_function_of_seed_and_number():
    straight = batches(200, seed=3)
    assert batches(200, seed=3) == straight
    assert batches(50, seed=3, start_batch=77) == straight[77:127]
    sampler = BucketBatchSampler(MEMBERS, 4, seed=3)
    assert [sampler.batch(n) for n in (199, 0, 63)] == [straight[199], straight[0], straight[63]]
    assert batches(50, seed=4) != straight[:50]


def test_batches_keep_to_one_bucket_and_know_their_place():
    owner = {index: number for number, rows in enumerate(MEMBERS) for index in rows}
    for number, batch in enumerate(batches(100)):
        assert len({owner[draw.index] for draw in batch}) == 1
        assert [(draw.batch, draw.position) for draw in batch] == [(number, i) for i in range(4)]


def test_every_sample_is_seen_equally_often():
    # 20 samples, shares 6 : 3 : 1: ten batches are a cycle of 24 + 12 + 4 samples, so each sample is seen twice.
    seen = Counter(draw.index for batch in batches(30) for draw in batch)
    assert set(seen) == set(range(20))
    assert set(seen.values()) == {6}
    # and within a bucket, once each before any comes again
    first = [draw.index for batch in batches(100) for draw in batch if draw.index < 12]
    for epoch in range(5):
        assert sorted(first[12 * epoch : 12 * epoch + 12]) == MEMBERS[0]
    assert first[:12] != first[12:24]


def test_buckets_alternate_in_proportion():
    counts = Counter()
    for number, batch in enumerate(batches(500), 1):
        counts[batch[0].index >= 12] += 1
        assert abs(counts[True] / number - 0.4) < 2 / number + 1e-9


def test_ratios_override_sizes():
    counts = Counter(batch[0].index // 12 + (batch[0].index >= 18) for batch in batches(1000, ratios=[1, 5, 1, 2]))
    assert counts == {0: 250, 1: 250, 2: 500}


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_same_global_batch(world):
    whole = batches(40, seed=1)
    parts = [batches(40, seed=1, rank=rank, world=world) for rank in range(world)]
    assert [[draw for part in parts for draw in part[n]] for n in range(40)] == whole


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match="multiple of 3"):
        BucketBatchSampler(MEMBERS, 4, world=3)
    with pytest.raises(ValueError, match="every bucket is empty"):
        BucketBatchSampler([[], []], 4)
    with pytest.raises(ValueError, match="one ratio"):
        BucketBatchSampler(MEMBERS, 4, ratios=[1, 2])
    with pytest.raises(ValueError, match="all empty"):
        BucketBatchSampler(MEMBERS, 4, ratios=[0, 1, 0, 0])


def test_replacement_depends_on_the_place_only():
    rows = list(range(1000))
    place = Draw(5, 7, 2)
    chosen = [replacement(rows, 1, place, attempt) for attempt in range(1, 9)]
    assert chosen == [replacement(rows, 1, place._replace(index=99), attempt) for attempt in range(1, 9)]
    assert len(set(chosen)) > 5
    assert chosen[0] != replacement(rows, 1, place._replace(position=3), 1)
    assert chosen[0] != replacement(rows, 2, place, 1)


def test_choose_bucket():
    sft = [
        Bucket.parse(values)
        for values in [[480, 768, 77], [768, 480, 77], [576, 1024, 21], [336, 592, 29], [480, 480, 125]]
    ]
    assert choose_bucket(sft, 1280, 720, 300) == 0  # little cropping, then length
    assert choose_bucket(sft, 1280, 720, 40) == 3
    assert choose_bucket(sft, 1280, 720, 28) == 2
    assert choose_bucket(sft, 720, 1280, 80) == 1
    assert choose_bucket(sft, 500, 500, 130) == 4
    assert choose_bucket(sft, 500, 500, 100) in (0, 1)  # too short for the square one
    assert choose_bucket(sft, 720, 1280, 20) is None
    with pytest.raises(ValueError, match="height, width, frames"):
        Bucket.parse([480, 768])
