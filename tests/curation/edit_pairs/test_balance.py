from collections import Counter

import pytest

from icve.curation.edit_pairs.balance import Balance
from icve.curation.stage import Rejected
from tests.curation.edit_pairs.scripted import workspace


def rows(**counts: int) -> list[dict]:
    return [{"key": f"{kind}{n}", "edit_type": kind} for kind, count in counts.items() for n in range(count)]


def kept(outcomes: list) -> Counter:
    return Counter(row["edit_type"] for row in outcomes if isinstance(row, dict))


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"per_type": 5, "max_ratio": None}, {"add": 5, "remove": 5, "style": 4, "rare": 1}),
        ({"max_ratio": 1.0}, {"add": 4, "remove": 4, "style": 4, "rare": 1}),
        ({"max_ratio": 2.5}, {"add": 10, "remove": 10, "style": 4, "rare": 1}),
        ({"per_type": 3, "max_ratio": 2.5}, {"add": 3, "remove": 3, "style": 3, "rare": 1}),
        ({"max_ratio": None}, {"add": 30, "remove": 12, "style": 4, "rare": 1}),
    ],
)
def test_no_type_exceeds_its_cap_and_none_below_loses_a_row(work, parameters, expected):
    given = rows(add=30, remove=12, style=4, rare=1)
    outcomes = Balance(**parameters)(given, work)
    assert kept(outcomes) == expected
    assert len(outcomes) == len(given)
    for row, outcome in zip(given, outcomes, strict=True):
        assert outcome is row or outcome.reason == "over its type's share"


def test_which_rows_stay_depends_on_key_and_seed_alone(work):
    given = rows(add=30, remove=4)

    def names(seed: int, order: int = 1, per_type: int = 8) -> set[str]:
        outcomes = Balance(per_type, None, seed)(given[::order], work)
        return {row["key"] for row in outcomes if isinstance(row, dict)}

    assert names(0) == names(0, order=-1)
    assert names(0) != names(1)
    assert names(0, per_type=8) < names(0, per_type=12)


def test_rows_without_a_type_are_one_type(work):
    outcomes = Balance(per_type=1)([{"key": "a"}, {"key": "b", "edit_type": None}, {"key": "c"}], work)
    assert sum(isinstance(outcome, Rejected) for outcome in outcomes) == 2
    assert "other: 3 rows, 1 kept" in [o.detail for o in outcomes if isinstance(o, Rejected)]


def test_no_rows_are_no_error(work):
    assert Balance()([], work) == []


def test_parameters_are_checked():
    for parameters in ({"per_type": 0}, {"max_ratio": 0.0}):
        with pytest.raises(ValueError, match="Balance needs"):
            Balance(**parameters)
