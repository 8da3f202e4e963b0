"""Instructions for rows, from a model over HTTP or in this process."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
import yaml

from icve.curation.annotate.endpoint import EndpointModel
from icve.curation.annotate.model_annotator import ModelAnnotator
from icve.curation.stage import Rejected, Workspace
from icve.curation.stage_list import load_pipeline
from icve.curation.vision_language import Answer, Question, VisionLanguageModel
from icve.data.manifest import ManifestError
from icve.data.media.video import write_video
from tests.curation.annotate.http_endpoint import Endpoint, Reply, completion


class Recorded(VisionLanguageModel):
    """Keeps what it is asked and gives the answers it was made with, each through the question's own check."""

    needs = "gpu"

    def __init__(self, *answers: str) -> None:
        self.answers = answers
        self.questions: list[Question] = []

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        self.questions += questions
        problems = [(text, question.check(text)) for text, question in zip(self.answers, questions, strict=True)]
        return [Answer(text) if problem is None else Answer(None, problem) for text, problem in problems]


def grey_video(path, levels: Sequence[int], size=(48, 80)):
    """Frame k is all of grey level ``levels[k]``."""
    clip = np.empty((len(levels), *size, 3), np.uint8)
    clip[:] = np.asarray(levels, np.uint8)[:, None, None, None]
    write_video(path, clip, 10)
    return path


def row(number: int = 0, **columns):
    return {"key": f"row{number}", "source_path": "a.mp4", "target_path": "a.mp4", **columns}


@pytest.fixture
def work(tmp_path) -> Workspace:
    return Workspace(tmp_path, tmp_path / "run", tmp_path)


def test_the_model_sees_source_and_target_at_the_same_moments(work, tmp_path):
    grey_video(tmp_path / "a.mp4", range(0, 240, 4))
    model = Recorded("Add a hat to the man")
    stage = ModelAnnotator(model, pairs=3)
    stage.setup()
    clips = {"source_start": 0, "source_frames": 13, "target_start": 40, "target_frames": 13, "scene_id": 7}
    (outcome,) = stage([row(**clips)], work)
    assert outcome == row(**clips) | {"instruction": "Add a hat to the man.", "edit_type": "add"}
    (question,) = model.questions
    assert [picture.shape for picture in question.images] == [(48, 80 + 16 + 80, 3)] * 3
    for picture, moment in zip(question.images, (2, 6, 10), strict=True):
        assert picture[:, :80].mean() == pytest.approx(4 * moment, abs=3)
        assert picture[:, 96:].mean() == pytest.approx(4 * (40 + moment), abs=3)
        assert (picture[:, 80:96] == 255).all()
    assert "3 pictures" in question.prompt


def test_an_edited_copy_of_another_size_is_shown_at_the_same(work, tmp_path):
    grey_video(tmp_path / "a.mp4", [50] * 9, size=(48, 80))
    grey_video(tmp_path / "edited.mp4", [150] * 9, size=(64, 96))
    model = Recorded("Make it night.")
    stage = ModelAnnotator(model, pairs=1, frame_side=40, edit_types=False)
    (outcome,) = stage([row(target_path="edited.mp4")], work)
    assert outcome["instruction"] == "Make it night."
    assert "edit_type" not in outcome
    (picture,) = model.questions[0].images
    assert picture.shape == (24, 40 + 16 + 40, 3)
    assert picture[:, :40].mean() == pytest.approx(50, abs=3)
    assert picture[:, 56:].mean() == pytest.approx(150, abs=3)


def test_an_unreadable_video_costs_its_own_row_only(work, tmp_path):
    grey_video(tmp_path / "a.mp4", range(20))
    (tmp_path / "b.mp4").write_bytes(b"no video")
    stage = ModelAnnotator(Recorded("Zoom in.", "Zoom out."))
    rows = [row(0), row(1, target_path="b.mp4"), row(2), row(3, source_start=15, source_frames=9)]
    first, second, third, fourth = stage(rows, work)
    assert (first["key"], first["instruction"]) == ("row0", "Zoom in.")
    assert (third["key"], third["instruction"]) == ("row2", "Zoom out.")
    assert [second.reason, fourth.reason] == ["unreadable video"] * 2
    with pytest.raises(ManifestError):
        stage([row(target_path="../b.mp4")], work)


def test_answers_are_checked_for_what_was_asked(work, tmp_path):
    grey_video(tmp_path / "a.mp4", range(20))
    bad = ["The man has a hat.", "Add a hat. And a coat.", "Add a hat to the left frame.", "Setze den Hut auf."]
    outcomes = ModelAnnotator(Recorded(*bad))([row(number) for number in range(4)], work)
    assert [outcome.reason for outcome in outcomes] == ["no instruction"] * 4
    assert not any(outcome.transient for outcome in outcomes)
    assert len({outcome.detail for outcome in outcomes}) == 4
    assert ModelAnnotator(Recorded(bad[3]), language="German")([row()], work)[0]["instruction"] == bad[3]
    assert ModelAnnotator(Recorded(bad[2]), banned=[])([row()], work)[0]["instruction"] == bad[2]


def test_needs_and_time_are_the_models(endpoint):
    assert ModelAnnotator(Recorded()).needs == "gpu"
    model = EndpointModel(endpoint.url, "tiny", timeout=7, attempts=2)
    stage = ModelAnnotator(model)
    assert stage.needs == "cpu"
    assert stage.seconds(row()) > model.seconds > 2 * 2 * 7
    assert {"base_url", "concurrency", "cache", "timeout"} <= model.incidental
    assert not {"model", "temperature", "longest_side"} & model.incidental


@pytest.mark.parametrize("wrong", [{"pairs": 0}, {"max_tokens": 0}, {"frame_side": 3}, {"language": "Klingon"}])
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelAnnotator(Recorded(), **wrong)


def test_every_row_has_one_outcome_whatever_the_endpoint_does(endpoint, work, tmp_path):
    """Forty rows against an endpoint that fails in every way; then a rerun against one that has recovered."""
    pytest.importorskip("openai")
    grey_video(tmp_path / "a.mp4", range(0, 240, 4))
    rows = [row(number, source_start=number, source_frames=9, target_start=0, target_frames=9) for number in range(40)]

    def level(request) -> int:
        """The row's number, read from the picture that was sent."""
        url = request["messages"][0]["content"][0]["image_url"]["url"]
        data = np.frombuffer(base64.b64decode(url.split(",")[1]), np.uint8)
        return round(float(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)[:, :70].mean()) / 4) - 4

    times: dict[int, int] = {}

    def reply(request, _) -> Reply:
        number = level(request)
        times[number] = times.get(number, 0) + 1
        good = completion(f"Add {number} birds to the sky.")
        wrong = completion("There are birds.")
        first = times[number] == 1
        kinds = {
            0: good,
            1: Reply({}, 429, {"Retry-After": "0.05"}) if first else good,
            2: Reply({}, 500) if first else good,
            3: Reply("garbage") if first else good,
            4: Reply(None, drop=True) if first else good,
            5: wrong if first else good,
            6: wrong,
            7: completion(None, refusal="No."),
            8: Reply({}, 503),
            9: Reply({}, delay=0.8) if first else good,
        }
        return kinds[number % 10]

    endpoint.reply = reply
    patience = {"first_wait": 0.01, "longest_wait": 0.5, "attempts": 3, "timeout": 0.5, "concurrency": 6}
    stage = ModelAnnotator(EndpointModel(endpoint.url, "tiny", image_format="png", **patience), pairs=1)
    stage.setup()
    outcomes = stage(rows, work)
    assert len(outcomes) == len(rows)
    for number, outcome in enumerate(outcomes):
        if number % 10 in (6, 7, 8):
            assert isinstance(outcome, Rejected)
            assert outcome.reason == "no instruction"
            assert outcome.transient is (number % 10 == 8)
        else:
            assert outcome == {**rows[number], "instruction": f"Add {number} birds to the sky.", "edit_type": "add"}
    assert endpoint.most_together <= 6

    # The rerun asks for what has no answer yet, and nothing else.
    before = len(endpoint.requests)
    endpoint.reply = lambda request, _: completion(f"Add {level(request)} birds to the sky.")
    again = ModelAnnotator(EndpointModel(endpoint.url, "tiny", image_format="png", **patience), pairs=1)
    again.setup()
    assert [outcome["instruction"] for outcome in again(rows, work)] == [
        f"Add {number} birds to the sky." for number in range(40)
    ]
    assert sorted(level(request) for request in endpoint.requests[before:]) == [
        number for number in range(40) if number % 10 in (6, 7, 8)
    ]
    assert Endpoint.prompt(endpoint.requests[0]) == stage.prompt


def pipeline(tmp_path, **model):
    """The one stage of a pipeline whose YAML has these parameters of its model."""
    entry = {"base_url": "http://localhost:8000/v1", "model": "tiny"} | model
    stage = {
        "class_path": "icve.curation.annotate.model_annotator.ModelAnnotator",
        "init_args": {"pairs": 2, "model": {"class_path": f"{EndpointModel.__module__}.EndpointModel"}},
    }
    stage["init_args"]["model"]["init_args"] = entry
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"stages": [stage]}))
    return load_pipeline(file).stages[0]


def test_only_what_decides_an_answer_invalidates_answers(tmp_path):
    stage = pipeline(tmp_path)
    assert stage.needs == "cpu"
    elsewhere = {"base_url": "https://example.org/v1", "concurrency": 64, "requests_per_minute": 100.0}
    assert pipeline(tmp_path, **elsewhere, cache="kept", input_price=2.5).identity == stage.identity
    for change in ({"model": "large"}, {"longest_side": 512}, {"extra_body": {"top_k": 1}}):
        assert pipeline(tmp_path, **change).identity != stage.identity


def test_a_wrong_parameter_in_yaml_is_named(tmp_path):
    with pytest.raises(ValueError, match="base_url must be an address"):
        pipeline(tmp_path, base_url="localhost")
