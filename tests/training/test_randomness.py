import torch

from icve.training.randomness import generator


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
