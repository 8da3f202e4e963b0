import pytest
from jsonargparse import ArgumentParser

from icve.training.arguments import explain


class Thing:
    def __init__(self, width: int = 1, height: int = 2):
        self.width = width


@pytest.fixture
def parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--trainer.max_steps", type=int, default=1)
    parser.add_subclass_arguments(Thing, "thing")
    return parser


def complaint(parser, arguments):
    with pytest.raises(Exception) as error:  # noqa: PT011 (argparse.ArgumentError or jsonargparse's own)
        parser.parse_args(arguments)
    return explain(str(error.value), parser)


def test_unknown_options_come_with_the_nearest_name(parser):
    told = complaint(parser, ["--trainer.maxsteps", "3"])
    assert told == "there is no option 'trainer.maxsteps'; did you mean 'trainer.max_steps'?"
    assert complaint(parser, ["--nothing.like.it", "3"]) == "there is no option 'nothing.like.it'"


def test_unknown_options_of_a_class_too(parser):
    path = f"{__name__}.Thing"
    told = complaint(parser, [f'--thing={{"class_path": "{path}", "init_args": {{"widht": 3}}}}'])
    assert told == "thing.init_args has no option 'widht'; did you mean 'width'?"


def test_other_complaints_are_one_line(parser):
    told = complaint(parser, ["--trainer.max_steps", "many"])
    assert "\n" not in told
    assert "trainer.max_steps" in told
    assert "many" in told
