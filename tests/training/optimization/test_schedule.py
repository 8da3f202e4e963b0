import pytest

from icve.training.optimization.schedule import Schedule


def test_warm_up_is_linear_and_starts_above_zero():
    factor = Schedule("constant", 4).factor(0)
    assert [factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_one_to_its_end_value():
    factor = Schedule("cosine", 10, final_factor=0.1).factor(110)
    assert factor(10) == 1.0
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == factor(500) == pytest.approx(0.1)
    values = [factor(step) for step in range(10, 111)]
    assert values == sorted(values, reverse=True)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"max_steps"):
        Schedule("cosine").factor(-1)
    with pytest.raises(ValueError, match="linear"):
        Schedule("linear")
