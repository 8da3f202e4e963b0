import random
from collections import Counter

import pytest

from icve.data.buckets import Bucket, StepSizes
from icve.data.mixture_sampler import Drawn, MixtureSampler

BUCKETS = [Bucket(16, 16, 1), Bucket(16, 32, 1), Bucket(32, 32, 5)]  # 2, 4 and 16 tokens
# Pictures in two buckets, clips in one of these and in one of their own, few rows in one alone.
MEMBERS = {
    "pictures": [range(40), range(40, 60), []],
    "clips": [[], range(60, 67), range(67, 97)],
    "few": [[97, 98], [], []],
}
WEIGHTS = {"pictures": 0.3, "clips": 0.6, "few": 0.1}


def sampler(weights=WEIGHTS, members=MEMBERS, batch_size=4, groups=1, micro_steps=1, tokens=None, **options):
    sizes = StepSizes(BUCKETS, batch_size, groups, micro_steps, tokens_per_batch=tokens)
    return MixtureSampler(members, weights, sizes, **options)


def owner(row):
    """Data set and bucket of a row."""
    return next((name, n) for name, of in MEMBERS.items() for n, rows in enumerate(of) if row in rows)


def test_a_batch_is_a_pure_function_of_seed_and_step():
    straight = [sampler(seed=3).batch(step) for step in range(60)]
    again = sampler(seed=3)
    assert [again.batch(step) for step in (59, 0, 31)] == [straight[59], straight[0], straight[31]]
    assert [sampler(seed=4).batch(step) for step in range(60)] != straight


@pytest.mark.parametrize("options", [{}, {"tokens": 48}, {"batch_size": 7}, {"ratios": [2, 1, 3]}])
def test_data_sets_and_buckets_have_their_shares_at_every_step(options):
    order = sampler(**options)
    seen, of_bucket, steps, worst = Counter(), Counter(), Counter(), 0.0
    for step in range(400):
        batch = order.batch(step)
        places = [owner(draw.row) for draw in batch]
        assert len({bucket for _, bucket in places}) == 1
        bucket = places[0][1]
        steps[bucket] += 1
        # Within a bucket, at every sample.
        for name, _ in places:
            of_bucket[bucket] += 1
            seen[name, bucket] += 1
            shares = [float(row[bucket]) for row in order._cells]
            for other, share in zip(MEMBERS, shares, strict=True):
                assert abs(seen[other, bucket] - of_bucket[bucket] * share / sum(shares)) < 2
        total = sum(seen.values())
        for name, weight in WEIGHTS.items():
            worst = max(worst, abs(sum(seen[name, b] for b in range(3)) - weight * total))
        if "ratios" in options:
            assert all(abs(steps[b] - r / 6 * (step + 1)) < 2 for b, r in enumerate([2, 1, 3]))
    assert worst <= 2 * max(float(order.sizes.samples(b)) for b in range(3)) + 2


def test_data_sets_of_one_bucket_are_never_two_samples_from_their_shares():
    members = {name: [range(100 * n, 100 * n + 50), [], []] for n, name in enumerate(WEIGHTS)}
    order, seen = sampler(members=members), Counter()
    for step in range(500):
        seen.update(("pictures", "clips", "few")[draw.row // 100] for draw in order.batch(step))
        assert all(abs(seen[name] - weight * 4 * (step + 1)) <= 1 for name, weight in WEIGHTS.items())
    assert [seen[name] for name in WEIGHTS] == [600, 1200, 200]


def test_every_row_of_a_data_set_comes_equally_often():
    order = sampler()
    seen = Counter(draw.row for step in range(2000) for draw in order.batch(step))
    for name, of in MEMBERS.items():
        rows = [row for rows in of for row in rows]
        each = 8000 * WEIGHTS[name] / len(rows)
        assert all(abs(seen[row] - each) < 2 for row in rows)


def test_no_row_comes_again_before_the_others_of_its_data_set_and_bucket():
    order, taken = sampler(seed=1), {}
    epochs = Counter()
    for step in range(600):
        for draw in order.batch(step):
            place = owner(draw.row)
            epoch = taken.setdefault(place, set())
            assert draw.row not in epoch
            epoch.add(draw.row)
            if len(epoch) == len(MEMBERS[place[0]][place[1]]):
                epochs[place] += 1
                epoch.clear()
    assert epochs["few", 0] == 120
    assert epochs["pictures", 0] >= 10


@pytest.mark.parametrize("split", [{"groups": 2}, {"groups": 8}, {"micro_steps": 3}, {"groups": 4, "micro_steps": 2}])
def test_groups_have_disjoint_parts_of_the_same_batches(split):
    whole = sampler(batch_size=24, seed=2)
    parts = [sampler(batch_size=24, seed=2, rank=rank, **split) for rank in range(split.get("groups", 1))]
    passes = split.get("micro_steps", 1)
    for step in range(30):
        numbers = range(step * passes, (step + 1) * passes)
        together = [draw for number in numbers for part in parts for draw in part.micro_batch(number)]
        assert together == whole.batch(step)


def test_a_changed_mixture_goes_on_from_what_was_drawn():
    before, weights = sampler(seed=5), {"pictures": 0.6, "clips": 0.2, "few": 0.2}
    drawn = before.drawn_before(70)
    seen = Counter(owner(draw.row) for step in range(70) for draw in before.batch(step))
    shapes = [str(bucket) for bucket in BUCKETS]
    assert {(n, shapes.index(b)): c for n, of in drawn.samples.items() for b, c in of.items() if c} == seen
    after = sampler(weights, seed=5, begun=drawn)
    assert after.schedule != before.schedule
    # Rows go on in the order that they would have had.
    streams = {place: [] for place in seen}
    for step in range(70):
        for draw in before.batch(step):
            streams[owner(draw.row)].append(draw.row)
    for step in range(70, 300):
        for draw in after.batch(step):
            streams[owner(draw.row)].append(draw.row)
    whole = {place: [] for place in seen}
    for step in range(900):
        for draw in before.batch(step):
            whole[owner(draw.row)].append(draw.row)
    for place, stream in streams.items():
        length = min(len(stream), len(whole[place]))
        assert length > 60
        assert stream[:length] == whole[place][:length]
    counts = Counter(name for step in range(70, 320) for name, _ in map(owner, (d.row for d in after.batch(step))))
    assert all(abs(counts[name] - weight * 1000) <= 10 for name, weight in weights.items())
    # And once more, with a data set that is new.
    assert sampler(begun=after.drawn_before(300)).drawn_before(300) == after.drawn_before(300)
    assert sum(sum(of.values()) for of in after.drawn_before(300).samples.values()) == 1200


def test_a_data_sets_order_does_not_depend_on_the_others():
    alone = sampler({"clips": 1.0}, {"clips": MEMBERS["clips"]}, seed=7)
    streams = []
    for order in (alone, sampler(seed=7)):
        rows = [draw.row for step in range(300) for draw in order.batch(step)]
        streams.append([row for row in rows if owner(row) == ("clips", 2)][:200])
    assert streams[0] == streams[1]


def test_random_mixtures_keep_their_shares():
    rng = random.Random(0)
    for _ in range(15):
        members, first = {}, 0
        for name in "abcde"[: rng.randint(1, 5)]:
            of = []
            for _ in BUCKETS:
                rows = rng.choice([0, 1, 5, 37])
                of.append(range(first, first + rows))
                first += rows
            members[name] = of if any(map(len, of)) else [range(first, first + 3), [], []]
            first += 3
        weights = {name: round(rng.uniform(0.05, 1), 3) for name in members}
        order = sampler(weights, members, tokens=rng.choice([None, 96]))
        drawn = order.drawn_before(5000).samples
        total = sum(sum(of.values()) for of in drawn.values())
        for name, weight in weights.items():
            assert abs(sum(drawn[name].values()) - total * weight / sum(weights.values())) < 160


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="draws from nothing"):
        sampler(dict.fromkeys(MEMBERS, 0.0))
    with pytest.raises(ValueError, match="No row of 'few' is in a bucket"):
        sampler(ratios=[0, 1, 1])
    with pytest.raises(ValueError, match=r"cannot be met .* 0\.01 of the samples in 16x16x1"):
        sampler(ratios=[1, 1, 98])
    with pytest.raises(ValueError, match="one ratio of at least 0 for each of the 3 buckets"):
        sampler(ratios=[1, 2])
    with pytest.raises(ValueError, match="too small for 8 groups"):
        sampler(groups=8)
    assert sampler(WEIGHTS | {"few": 0.0}).drawn_before(100).samples["few"] == {
        "16x16x1": 0,
        "16x32x1": 0,
        "32x32x5": 0,
    }


def test_the_start_is_nothing_drawn():
    assert sampler().drawn_before(0) == Drawn(0, {n: dict.fromkeys(map(str, BUCKETS), 0) for n in MEMBERS})
    assert "pictures has 0.3 of all samples (0.2 in 16x16x1, 0.1 in 16x32x1)" in sampler().describe()
