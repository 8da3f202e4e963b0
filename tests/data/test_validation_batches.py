from itertools import product

import pytest

from icve.data.validation_batches import validation_batches


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
def test_every_row_counts_once_whatever_the_groups(groups):
    for sizes, batch_size in product(([1], [2], [3, 1], [0, 7, 5], [16, 1, 9]), (1, 2, 3, 5, 16)):
        rows = iter(range(100))
        members = [[next(rows) for _ in range(size)] for size in sizes]
        parts = [validation_batches(members, batch_size, rank, groups) for rank in range(groups)]
        # No group waits for another, and none computes on nothing.
        assert {len(batches) for batches in parts} == {sum(-(-size // batch_size) for size in sizes)}
        assert all(batch for batches in parts for batch in batches)
        order = []
        for shared in zip(*parts, strict=True):
            draws = [draw for batch in shared for draw in batch]
            counted = [draw for draw in draws if draw.counted]
            assert 0 < len(counted) <= batch_size
            # What is not counted costs no more than it must: another bucket or batch would.
            assert {draw.row for draw in draws} == {draw.row for draw in counted}
            assert [draw.position for draw in counted] == list(range(len(counted)))
            order += [draw.row for draw in counted]
        assert order == list(range(sum(sizes)))
