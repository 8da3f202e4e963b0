import torch

from icve.training.randomness import Draws, generator


def draw(*arguments):
    return torch.randn(4, generator=generator(*arguments)).tolist()


def test_equal_arguments_give_equal_draws_whatever_was_drawn_before():
    first = draw(1, "sft", 7, 3, "noise")
    torch.randn(100)
    generator(1, "sft", 8, 3, "noise")
    assert draw(1, "sft", 7, 3, "noise") == first


def test_every_argument_matters():
    arguments = (1, "sft", 7, 3, "noise")
    others = [(2, "pretrain", 8, 4, "sigma")[i] for i in range(5)]
    draws = [draw(*arguments)] + [draw(*arguments[:i], others[i], *arguments[i + 1 :]) for i in range(5)]
    assert len({tuple(values) for values in draws}) == 6


def test_neighbouring_numbers_do_not_run_together():
    # (step 1, position 11) and (step 11, position 1) would collide if the parts were only written one after the other.
    assert draw(0, "s", 1, 11, "noise") != draw(0, "s", 11, 1, "noise")
    assert draw(0, "s", 1, 11, "noise") != draw(0, "s", 111, "", "noise")


def test_values_are_fixed_for_all_time():
    # Another value would make every running stage unresumable.
    values = torch.rand(2, generator=generator(0, "stage", 5, 2, "sigma"), dtype=torch.float64)
    torch.testing.assert_close(values, torch.tensor([0.9883726716436299, 0.4547820247698381], dtype=torch.float64))


def test_stratified_numbers_are_one_in_each_part():
    drawn = [Draws(0, "s", step, range(8), 8).stratified("sigma") for step in range(200)]
    assert all(sorted(int(8 * number) for number in numbers) == list(range(8)) for numbers in drawn)
    # A position's numbers are uniform: it meets every part, and every place in a part.
    assert {int(8 * numbers[3]) for numbers in drawn} == set(range(8))
    within = [8 * numbers[3] % 1 for numbers in drawn]
    assert 0.4 < sum(within) / 200 < 0.6
    assert min(within) < 0.05


def test_stratified_numbers_do_not_depend_on_the_split():
    whole = Draws(1, "s", 4, range(6), 6).stratified("sigma")
    parts = [
        Draws(1, "s", 4, positions, 6).stratified("sigma") for positions in (range(0, 1), range(1, 4), range(4, 6))
    ]
    assert [number for part in parts for number in part] == whole
    assert all(
        Draws(*arguments, range(6), 6).stratified("sigma") != whole
        for arguments in ((2, "s", 4), (1, "t", 4), (1, "s", 5))
    )


def test_more_samples_than_announced_are_spread_anew():
    numbers = Draws(0, "s", 0, range(10), 4).stratified("sigma")
    assert sorted(int(4 * number) for number in numbers[4:8]) == list(range(4))
    assert len(set(numbers)) == 10
