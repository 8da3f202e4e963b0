import random
from fractions import Fraction

import pytest

from icve.data.even_shares import EvenShares, fitted


@pytest.mark.parametrize("seed", range(20))
def test_shares_hold_at_every_length_of_the_row(seed):
    rng = random.Random(seed)
    weights = [Fraction(str(round(1e-3 + rng.random() ** rng.choice([1, 8]), 4))) for _ in range(seed % 9 + 1)]
    weights.append(Fraction(0))
    shares, seen = EvenShares(weights), [0] * len(weights)
    most = Fraction(1, 2) if len(weights) == 3 else Fraction(2)
    for number in range(300):
        entry, before = shares.turn(number)
        assert before == seen[entry]
        seen[entry] += 1
        assert shares.counts(number + 1) == seen
        for count, weight in zip(seen, weights, strict=True):
            assert abs(count - (number + 1) * weight / sum(weights)) <= most
    assert seen[-1] == 0


def test_shares_are_exact_after_very_many_turns():
    weights = [Fraction("0.2"), Fraction("0.3"), Fraction("0.5")]
    assert EvenShares(weights).counts(10**15) == [2 * 10**14, 3 * 10**14, 5 * 10**14]
    assert EvenShares(weights[:1]).turn(10**9) == (0, 10**9)


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1]])
def test_weights_that_make_no_shares_are_refused(weights):
    with pytest.raises(ValueError, match="at least 0, not all of them 0"):
        EvenShares([Fraction(weight) for weight in weights])


def test_a_table_is_fitted_to_column_sums_and_keeps_its_rows():
    table = [[Fraction(1, 5), Fraction(0), Fraction(1, 10)], [Fraction(1, 5), Fraction(3, 10), Fraction(1, 5)]]
    columns = [Fraction(1, 4), Fraction(2, 5), Fraction(7, 20)]
    found = fitted(table, columns)
    assert found is not None
    assert [sum(column) for column in zip(*found, strict=True)] == columns
    for row, given in zip(found, table, strict=True):
        assert float(sum(row)) == pytest.approx(float(sum(given)), rel=1e-8)
    assert found[0][1] == 0


def test_a_table_that_cannot_be_fitted_is_none():
    assert (
        fitted([[Fraction(1, 2), Fraction(0)], [Fraction(0), Fraction(1, 2)]], [Fraction(1, 5), Fraction(4, 5)]) is None
    )
    assert fitted([[Fraction(1), Fraction(0)]], [Fraction(1, 2), Fraction(1, 2)]) is None
