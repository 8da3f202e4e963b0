"""An OpenAI-compatible endpoint, asked over real HTTP: what it is sent, and what is made of its answers."""

from __future__ import annotations

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest

from icve.curation.annotate.endpoint import EndpointModel
from icve.curation.vision_language import Question
from tests.curation.annotate.http_endpoint import Reply, completion, echo, questions

pytest.importorskip("openai")


def test_answers_come_in_the_order_of_the_questions_and_within_the_bound_of_concurrency(endpoint, model):
    rng = np.random.default_rng(0)
    delays = rng.uniform(0, 0.03, 40)

    def reply(request, number):
        made = echo(request, number)
        made.delay = float(delays[number])
        return made

    endpoint.reply = reply
    answers = model(concurrency=5).ask(questions(40))
    assert [answer.text for answer in answers] == [f"Answer to Question {number}." for number in range(40)]
    assert len(endpoint.requests) == 40
    assert 2 <= endpoint.most_together <= 5


def test_an_answer_that_fails_its_check_is_asked_for_once_more(endpoint, model):
    def check(text):
        return None if text == "Add a hat." else "It must be about a hat."

    def reply(request, number):
        turns = request["messages"]
        if len(turns) == 1:
            return completion("The man wears a cap.")
        assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
        assert turns[1]["content"] == "The man wears a cap."
        assert "It must be about a hat." in turns[2]["content"]
        return completion("Add a hat.")

    endpoint.reply = reply
    (answer,) = model().ask(questions(1, check))
    assert answer.text == "Add a hat."
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("text", ["The man wears a cap.", "", None])
def test_an_answer_that_fails_its_check_twice_is_rejected_for_good(endpoint, model, text):
    endpoint.reply = lambda request, number: completion(text)
    (answer,) = model().ask(questions(1, lambda text: "It must be about a hat."))
    assert answer.text is None
    assert not answer.transient
    assert "It must be about a hat." in answer.error
    assert len(endpoint.requests) == 2


def test_an_answer_that_was_cut_off_is_no_answer(endpoint, model):
    endpoint.reply = lambda request, number: completion("Add a", end="length" if number == 0 else "stop")
    (answer,) = model().ask(questions(1))
    assert answer.text == "Add a"
    assert "longer than 256 tokens" in endpoint.requests[1]["messages"][2]["content"]


@pytest.mark.parametrize("refused", [{"refusal": "I will not."}, {"end": "content_filter"}])
def test_a_refusal_is_taken_for_an_answer(endpoint, model, refused):
    endpoint.reply = lambda request, number: completion(None, **refused)
    (answer,) = model().ask(questions(1))
    assert answer.text is None
    assert not answer.transient
    assert "refused" in answer.error
    assert len(endpoint.requests) == 1


def test_thoughts_are_no_part_of_the_answer(endpoint, model):
    endpoint.reply = lambda request, number: completion("<think>\nLeft, a hat.\n</think>\n\nAdd a hat.")
    assert model().ask(questions(1))[0].text == "Add a hat."


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_pictures_arrive_as_they_were_sent(endpoint, model, image_format):
    rows, columns = np.mgrid[:90, :160]
    picture = np.stack([rows * 2, columns, 255 - rows - columns], -1).clip(0, 255).astype(np.uint8)
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, :200] = (255, 0, 0)
    model(image_format=image_format, longest_side=200).ask([Question("What?", [picture, wide])])
    request = endpoint.requests[0]
    assert request["model"] == "tiny"
    assert request["temperature"] == 0
    assert request["max_tokens"] == 256
    parts = request["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    decoded = []
    for part in parts[:2]:
        head, data = part["image_url"]["url"].split(",")
        assert head == f"data:image/{image_format};base64"
        decoded.append(cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    assert decoded[0].shape == (90, 160, 3)
    assert np.abs(decoded[0].astype(int) - picture).max() <= (0 if image_format == "png" else 20)
    assert decoded[1].shape == (50, 200, 3)
    assert (decoded[1][25, 20] > (200, -1, -1)).all()
    assert decoded[1][25, 20, 2] < 50  # red, not blue


def test_options_reach_the_endpoint(endpoint, model):
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    model(temperature=None, max_tokens_name="max_completion_tokens", extra_body=extra).ask(questions(1))
    request = endpoint.requests[0]
    assert "temperature" not in request
    assert "max_tokens" not in request
    assert request["max_completion_tokens"] == 256
    assert request["chat_template_kwargs"] == {"enable_thinking": False}


def test_the_key_comes_from_the_environment_and_nowhere_else(endpoint, model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not for this endpoint")
    monkeypatch.setenv("MY_KEY", "secret")
    model(api_key_env="MY_KEY").ask(questions(1))
    assert set(endpoint.keys) == {"Bearer secret"}
    endpoint.keys.clear()
    model().ask([Question("Another.")])
    assert "Bearer not for this endpoint" not in endpoint.keys
    monkeypatch.setenv("MY_KEY", "")
    with pytest.raises(ValueError, match="MY_KEY must hold"):
        model(api_key_env="MY_KEY")


def test_what_cannot_work_ends_before_the_first_question(endpoint, model):
    endpoint.models = Reply({"error": {"message": "who are you?"}}, 401)
    with pytest.raises(ValueError, match="refuses the key"):
        model()
    with pytest.raises(OSError, match="There is no endpoint at"):
        model(base_url="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    "models", [Reply({}, 404), Reply({}, 500), Reply("hello"), Reply("hi", content_type="text/html"), Reply([3])]
)
def test_an_endpoint_need_not_list_its_models(endpoint, model, models):
    endpoint.models = models
    assert model().ask(questions(1))[0].text == "Add a red ball."


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "localhost:8000"},
        {"model": ""},
        {"concurrency": 0},
        {"attempts": 0},
        {"timeout": 0},
        {"first_wait": 2.0, "longest_wait": 1.0},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -1},
        {"jpeg_quality": 0},
        {"longest_side": 2},
        {"input_price": float("nan")},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_wrong_parameters_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EndpointModel(**({"base_url": "http://localhost:1/v1", "model": "tiny"} | wrong))


def test_a_question_may_take_as_long_as_its_attempts():
    patient = EndpointModel("http://localhost:1/v1", "tiny", attempts=3, timeout=10, longest_wait=20)
    assert patient.seconds >= 2 * 3 * (10 + 20)


def test_no_key_stands_in_any_file(endpoint, model, monkeypatch, tmp_path):
    monkeypatch.setenv("MY_KEY", "secret-key")
    model(api_key_env="MY_KEY").ask(questions(2))
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(b"secret-key" in path.read_bytes() for path in files)
