import pytest
from jsonargparse import ArgumentParser

from icve.training.run.arguments import explain, with_strategy_class


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
    assert told == f"{path} has no option 'widht'; did you mean 'width'?"


def test_of_a_class_or_a_name_only_the_class_is_complained_about(parser):
    parser.add_argument("--either", type=Thing | None)
    told = complaint(parser, ['--either={"class_path": "tests.training.run.test_arguments.Nothing"}'])
    assert "has no attribute 'Nothing'" in told
    assert "Union" not in told
    assert "Given value" not in told
    assert "NoneType" not in told


OURS = "icve.training.distributed.strategies.FSDPUlyssesStrategy"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--trainer.strategy", "FSDPUlyssesStrategy", "--x", "1"],
            [f"--trainer.strategy.class_path={OURS}", "--x", "1"],
        ),
        ([f"--trainer.strategy={OURS}"], [f"--trainer.strategy.class_path={OURS}"]),
        (["--trainer.strategy", "auto"], ["--trainer.strategy", "auto"]),
        (["--trainer.strategy=ddp", "--y"], ["--trainer.strategy=ddp", "--y"]),
        (["fit", "--trainer.strategy.init_args.stage", "2"], ["fit", "--trainer.strategy.init_args.stage", "2"]),
        (["--trainer.strategy"], ["--trainer.strategy"]),
    ],
)
def test_a_strategy_may_be_named_by_its_class(words, expected):
    assert with_strategy_class(words) == expected


def test_other_complaints_are_one_line(parser):
    told = complaint(parser, ["--trainer.max_steps", "many"])
    assert "\n" not in told
    assert "trainer.max_steps" in told
    assert "many" in told
