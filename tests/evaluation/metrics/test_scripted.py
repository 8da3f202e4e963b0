"""Models from TorchScript files."""

import numpy as np
import pytest
import torch

from icve.evaluation.metrics.motion import MotionSmoothness
from icve.evaluation.metrics.scripted import ScriptedModel, chosen_frames
from icve.evaluation.suite import load_suite
from tests.measured import measured


class Random(torch.nn.Module):
    """Two numbers of two clips and a text."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2))

    def forward(self, edited: torch.Tensor, source: torch.Tensor, tokens: torch.Tensor):
        return (edited - source).mean(dim=[1, 3, 4]) @ self.weight + tokens.float().mean()


class Pictures(torch.nn.Module):
    def forward(self, clip: torch.Tensor):
        return clip.mean(dim=[2, 3, 4])[0]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    def save(module):
        path = tmp_path_factory.mktemp("scripted") / "module.pt"
        torch.jit.save(torch.jit.script(module), path)
        return str(path)

    return save


def frames(count):
    """Frames of one grey each, 10 levels apart."""
    return np.broadcast_to((10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, 12, 20, 3)).copy()


def test_it_gets_clips_and_tokens_as_stated(file, goldens):
    torch.manual_seed(0)
    module = Random()
    clip = {"edited": frames(9) + 4, "source": frames(9)}
    metric = ScriptedModel(
        *(file(module), ["a", "b"], 4, (8, 8)),
        videos=["edited", "source"],
        mean=[0.5, 0.5, 0.5],
        deviation=[0.25, 0.5, 1.0],
        tokenizer=goldens.model("clip"),
        tokens=16,
        device="cpu",
    )
    assert metric.needs == ("edited", "source", "target_caption")
    found = measured(metric, texts={"target_caption": "remove the dog"}, **clip)
    words = goldens.cases["clip/tokens"]["expected"][2]
    tokens = torch.tensor(words + [561] * (16 - len(words))).float().mean()
    expected = 4 / 255 / torch.tensor([0.25, 0.5, 1.0]) @ module.weight + tokens
    assert list(found) == ["a", "b"]
    assert list(found.values()) == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("choice", "there", "numbers"),
    [
        ("even", 10, [0, 2, 5, 7]),
        ("even", 3, [0, 0, 1, 2]),
        ("stride", 11, [0, 2, 4, 6]),
        ("stride", 2, [0, 0, 1, 1]),
        ("ends", 10, [0, 3, 6, 9]),
        ("ends", 1, [0, 0, 0, 0]),
    ],
)
def test_frames_are_chosen_as_stated(choice, there, numbers, file):
    assert chosen_frames(there, 4, choice).tolist() == numbers
    metric = ScriptedModel(file(Pictures()), list("abcd"), 4, (8, 8), choice=choice, device="cpu")
    found = list(measured(metric, edited=frames(there)).values())
    assert [round(25.5 * value) for value in found] == numbers


def test_wrong_files_and_shapes_are_named(file, tmp_path):
    with pytest.raises(ValueError, match="There is no TorchScript file"):
        ScriptedModel(str(tmp_path / "none.pt"), ["a"])
    (tmp_path / "bad.pt").write_text("no")
    with pytest.raises(ValueError, match="is no TorchScript file"):
        ScriptedModel(str(tmp_path / "bad.pt"), ["a"])
    metric = ScriptedModel(file(Pictures()), ["a"], 4, (8, 8), device="cpu")
    with pytest.raises(ValueError, match="returns 4 numbers, and 1 figures are named"):
        measured(metric, edited=frames(5))


def test_a_suite_lists_it(file, tmp_path):
    options = f"{{file: {file(Pictures())}, figures: [a, b], frames: 2, size: [8, 16], videos: [edited], device: cpu}}"
    entry = f"{{class_path: icve.evaluation.metrics.scripted.ScriptedModel, init_args: {options}}}"
    (tmp_path / "suite.yaml").write_text(f"metrics: [{entry}]\n")
    (metric,) = load_suite(tmp_path / "suite.yaml").metrics
    assert measured(metric, edited=frames(6)) == pytest.approx({"a": 0, "b": 30 / 255})


class NoNumbers(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor):
        return (first - second) / torch.zeros_like(first)


class Cut(torch.nn.Module):
    def forward(self, first: torch.Tensor, second: torch.Tensor):
        return first[:, :, 1:]


def test_interpolators_that_fail_do_not_become_figures(file):
    for module, message in ((NoNumbers(), "gives no numbers for pictures of 12 × 20"), (Cut(), "of the shape")):
        with pytest.raises(ValueError, match=message):
            measured(MotionSmoothness(file(module), "cpu"), edited=frames(3))
