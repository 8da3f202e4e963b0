from collections import Counter
from itertools import islice

import pytest

from icve.data.buckets import Bucket, BucketBatchSampler, Draw, StepSizes, choose_bucket, replacement
from icve.data.latent_grid import LatentGrid

MEMBERS = [list(range(12)), [], list(range(12, 18)), [18, 19]]
BUCKETS = [Bucket(16, 16, 1), Bucket(16, 32, 1), Bucket(32, 32, 1), Bucket(32, 32, 5)]  # 2, 4, 8 and 16 tokens
OWNER = {index: number for number, rows in enumerate(MEMBERS) for index in rows}


def sizes(batch_size=4, groups=1, micro_steps=1, **options):
    return StepSizes(BUCKETS, batch_size, groups, micro_steps, **options)


def tokens_of(bucket):
    return StepSizes(BUCKETS, 1).tokens(bucket)


def batches(count, size=sizes(), **options):  # noqa: B008 (frozen)
    return list(islice(BucketBatchSampler(MEMBERS, size, **options), count))


def test_a_batch_is_a_pure_function_of_seed_and_number():
    straight = batches(200, seed=3)
    assert batches(200, seed=3) == straight
    assert batches(50, seed=3, start_batch=77) == straight[77:127]
    sampler = BucketBatchSampler(MEMBERS, sizes(), seed=3)
    assert [sampler.batch(n) for n in (199, 0, 63)] == [straight[199], straight[0], straight[63]]
    assert batches(50, seed=4) != straight[:50]


def test_batches_keep_to_one_bucket_and_know_their_place():
    for number, batch in enumerate(batches(100)):
        assert len({OWNER[draw.row] for draw in batch}) == 1
        assert [(draw.batch, draw.position) for draw in batch] == [(number, i) for i in range(4)]


def test_every_sample_is_seen_equally_often():
    # 20 samples, shares 6 : 3 : 1: ten batches are a cycle of 24 + 12 + 4 samples, so each sample is seen twice.
    seen = Counter(draw.row for batch in batches(30) for draw in batch)
    assert set(seen) == set(range(20))
    assert set(seen.values()) == {6}
    # and within a bucket, once each before any comes again
    first = [draw.row for batch in batches(100) for draw in batch if draw.row < 12]
    for epoch in range(5):
        assert sorted(first[12 * epoch : 12 * epoch + 12]) == MEMBERS[0]
    assert first[:12] != first[12:24]


def test_buckets_alternate_in_proportion():
    counts = Counter()
    for number, batch in enumerate(batches(500), 1):
        counts[batch[0].row >= 12] += 1
        assert abs(counts[True] / number - 0.4) < 2 / number + 1e-9


def test_ratios_override_sizes():
    counts = Counter(batch[0].row // 12 + (batch[0].row >= 18) for batch in batches(1000, ratios=[1, 5, 1, 2]))
    assert counts == {0: 250, 1: 250, 2: 500}


SPLITS = [
    {"groups": 2},
    {"groups": 12},
    {"micro_steps": 12},
    {"micro_steps": 5},
    {"groups": 3, "micro_steps": 2},
    {"groups": 2, "micro_steps": 6, "tokens_per_micro_batch": 16},
    {"micro_steps": 12, "tokens_per_micro_batch": 11},
]


@pytest.mark.parametrize("split", SPLITS)
def test_a_steps_batch_does_not_depend_on_how_it_is_split(split):
    whole, split = batches(40, sizes(12), seed=1), sizes(12, **split)
    samplers = [BucketBatchSampler(MEMBERS, split, seed=1, rank=rank) for rank in range(split.groups)]
    most = split.tokens_per_micro_batch
    for step, batch in enumerate(whole):
        numbers = range(step * split.micro_steps, (step + 1) * split.micro_steps)
        parts = [[sampler.micro_batch(number) for sampler in samplers] for number in numbers]
        assert [draw for part in parts for of_group in part for draw in of_group] == batch
        # No group waits for another, and the step ends with a micro-batch that has samples.
        assert all(len({len(of_group) for of_group in part}) == 1 for part in parts)
        assert parts[-1][0]
        counts = [len(part[0]) for part in parts]
        assert sum(samplers[0].weight(number) for number in numbers) == pytest.approx(split.micro_steps)
        for number, count in zip(numbers, counts, strict=True):
            assert samplers[0].weight(number) == pytest.approx(count * split.micro_steps / sum(counts))
        if most is None:
            assert max(counts) - min(counts) <= 1
        else:
            limit = max(1, most // tokens_of(OWNER[batch[0].row]))
            assert max(counts) <= limit
            # As few passes as the limit allows.
            assert sum(count > 0 for count in counts) == -(-sum(counts) // limit)


def test_empty_micro_batches_are_spread_over_the_step():
    split = sizes(4, micro_steps=12, tokens_per_micro_batch=4)  # two of the first bucket at once, six of twelve passes
    counts = [len(split.part(0, 4, micro_step)) for micro_step in range(12)]
    assert counts == [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2]


def test_the_order_is_the_same_at_any_micro_batch():
    split = sizes(12, groups=2, micro_steps=6, tokens_per_micro_batch=16)
    straight = batches(100, split, rank=1)
    assert batches(60, split, rank=1, start_batch=37) == straight[37:97]


def test_what_groups_cannot_share_is_met_on_average():
    """12 samples on 8 groups: 8 and 16 by turns, and still every sample comes before any comes again."""
    drawn = {0: [], 2: [], 3: []}
    counts = Counter()
    for batch in batches(400, sizes(12, groups=8)):
        drawn[OWNER[batch[0].row]].append(len(batch) * 8)  # this group's slice
        counts[len(batch) * 8] += 1
    for of_bucket in drawn.values():
        assert [a + b for a, b in zip(of_bucket[::2], of_bucket[1::2], strict=False)] == [24] * (len(of_bucket) // 2)
    assert set(counts) == {8, 16}
    sampler = BucketBatchSampler(MEMBERS, sizes(12, groups=8))
    assert [sampler.samples(step) for step in range(50)] == [len(sampler.batch(step)) for step in range(50)]
    first = [draw.row for step in range(50) for draw in sampler.batch(step) if draw.row < 12]
    assert all(sorted(first[12 * epoch : 12 * epoch + 12]) == MEMBERS[0] for epoch in range(len(first) // 12))


def test_a_budget_of_tokens_gives_small_samples_larger_batches():
    size = sizes(tokens_per_batch=36)
    seen, tokens = Counter(), Counter()
    steps = batches(3000, size)
    for batch in steps:
        bucket = OWNER[batch[0].row]
        assert abs(len(batch) * tokens_of(bucket) - 36) < tokens_of(bucket)
        tokens[bucket] += len(batch) * tokens_of(bucket)
        seen.update(draw.row for draw in batch)
    for bucket, total in tokens.items():
        turns = sum(OWNER[batch[0].row] == bucket for batch in steps)
        assert total / turns == pytest.approx(36, abs=tokens_of(bucket) / turns)
    # Samples are still seen equally often.
    assert max(seen.values()) <= 1.02 * min(seen.values())


def test_tokens_are_those_of_source_and_target():
    known = {(480, 768, 77): 57_600, (576, 1024, 21): 27_648, (336, 592, 29): 12_432, (480, 480, 125): 57_600}
    assert {bucket: StepSizes([Bucket(*bucket)], 1).tokens(0) for bucket in known} == known


def test_reference_pictures_count():
    sizes = StepSizes([Bucket(480, 768, 77)], 1, tokens_per_batch=59_040, references=True)
    assert sizes.tokens(0) == 57_600 + 1_440
    assert sizes.samples(0) == 1


def test_another_grid_counts_other_tokens():
    sizes = StepSizes([Bucket(480, 768, 77)], 1, grid=LatentGrid(spatial=16, patch=(1, 2, 2)))
    assert sizes.tokens(0) == 57_600 // 4


def test_impossible_batches_are_refused():
    with pytest.raises(ValueError, match=r"4 samples of bucket 16x16x1 is too small for 8 groups.*sequence_parallel"):
        BucketBatchSampler(MEMBERS, sizes(groups=8))
    with pytest.raises(ValueError, match=r"2.25 samples of bucket 32x32x5 is too small for 4 groups"):
        BucketBatchSampler(MEMBERS, sizes(groups=4, tokens_per_batch=36))
    assert batches(3, sizes(groups=2, tokens_per_batch=36), ratios=[1, 1, 1, 0])  # that bucket is not drawn
    with pytest.raises(ValueError, match=r"bucket 32x32x1 takes 4 passes of at most 8 tokens .* a step has 2: .* to 4"):
        BucketBatchSampler(MEMBERS, sizes(micro_steps=2, tokens_per_micro_batch=8))
    for name in ("batch_size", "tokens_per_batch", "tokens_per_micro_batch"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, not 0"):
            sizes(**{name: 0})
    with pytest.raises(ValueError, match="every bucket is empty"):
        BucketBatchSampler([[], []], sizes())
    with pytest.raises(ValueError, match="one ratio"):
        BucketBatchSampler(MEMBERS, sizes(), ratios=[1, 2])
    with pytest.raises(ValueError, match="all empty"):
        BucketBatchSampler(MEMBERS, sizes(), ratios=[0, 1, 0, 0])


def test_sizes_in_words():
    assert (
        sizes(12, groups=8).describe(2)
        == "32x32x1 8 or 16 (on average 12.0) samples, 2 (16 tokens) at once on each of 8"
    )
    assert sizes(12, 2, 6).describe(3) == "32x32x5 12 samples, 1 (16 tokens) at once on each of 2"


def test_replacement_depends_on_the_place_only():
    rows = list(range(1000))
    place = Draw(5, 7, 2)
    chosen = [replacement(rows, 1, place, attempt) for attempt in range(1, 9)]
    assert chosen == [replacement(rows, 1, place._replace(row=99), attempt) for attempt in range(1, 9)]
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
