"""An OpenAI-compatible endpoint, asked over real HTTP: every question gets one answer or one reason, in its place."""

from __future__ import annotations

import base64
import gc
import json
import tempfile
import time
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

from icve.curation.annotate.answers import ask
from icve.curation.annotate.endpoint import EndpointModel
from icve.curation.annotate.usage import Usage, total_usage
from icve.curation.stage import Workspace
from icve.curation.vision_language import Question
from tests.curation.annotate.http_endpoint import Endpoint, Reply, completion

pytest.importorskip("openai")

QUICK = {"first_wait": 0.01, "longest_wait": 1.0, "attempts": 4, "timeout": 5.0}


@pytest.fixture
def model(endpoint, tmp_path):
    """Makes a connected model with its cache in the test's folder."""

    def make(**parameters) -> EndpointModel:
        parameters = {"base_url": endpoint.url, "model": "tiny", "cache": str(tmp_path / "cache")} | QUICK | parameters
        made = EndpointModel(**parameters)
        made.setup()
        return made

    return make


def questions(count: int, check=None, images=()) -> list[Question]:
    check = check or (lambda text: None if text.strip() else "The answer is empty.")
    return [Question(f"Question {number}.", images, check) for number in range(count)]


def echo(request, _) -> Reply:
    return completion("Answer to " + Endpoint.prompt(request))


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


def test_no_answer_is_lost_or_doubled_on_a_bad_line(endpoint, model):
    """Every request fails once, each in one of the ways in which endpoints fail, and then succeeds."""
    failures = [
        Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0"}),
        Reply({"error": {"message": "out of order"}}, 500),
        Reply("<html>Bad gateway</html>", 502, content_type="text/html"),
        Reply("", 503),
        Reply("this is no JSON", content_type="application/json"),
        Reply("<p>Welcome!</p>", content_type="text/html"),
        Reply({"hello": "world"}),
        Reply({"choices": []}),
        Reply({"choices": [{"message": None}]}),
        Reply({"choices": [{"message": {"content": 7}, "finish_reason": "stop"}]}),
        Reply([1, 2]),
        Reply(None, drop=True),
        Reply({}, 408),
    ]
    seen: set[str] = set()

    def reply(request, number):
        prompt = Endpoint.prompt(request)
        if prompt in seen:
            return echo(request, number)
        seen.add(prompt)
        return failures[int(prompt.split()[1].rstrip(".")) % len(failures)]

    endpoint.reply = reply
    count = 3 * len(failures)
    answers = model(concurrency=6).ask(questions(count))
    assert [answer.text for answer in answers] == [f"Answer to Question {number}." for number in range(count)]
    assert len(endpoint.requests) == 2 * count


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (Reply({"error": {"message": "out of order"}}, 500), "status 500"),
        (Reply({"error": {"message": "slow down"}}, 429), "status 429"),
        (Reply("nonsense"), "no completion"),
        (Reply({"choices": []}), "no completion"),
        (Reply(None, drop=True), "no connection"),
        (Reply({}, delay=0.6), "within 0.2 s"),
    ],
    ids=["500", "429", "garbage", "empty", "drop", "slow"],
)
def test_what_keeps_failing_is_transient_and_explained(endpoint, model, reply, reason):
    endpoint.reply = lambda request, number: reply
    (answer,) = model(attempts=3, timeout=0.2 if reply.delay else 5.0).ask(questions(1))
    assert answer.text is None
    assert answer.transient
    assert reason in answer.error
    assert "after 3 attempts" in answer.error
    assert len(endpoint.requests) == 3


@pytest.mark.parametrize(("status", "transient"), [(400, False), (413, False), (422, False), (403, True), (404, True)])
def test_a_refused_request_is_not_repeated(endpoint, model, status, transient):
    """What is wrong with the question stays wrong; what is wrong with the setting may be mended before a rerun."""
    endpoint.reply = lambda request, number: Reply({"error": {"message": "no such thing"}}, status)
    (answer,) = model().ask(questions(1))
    assert answer.text is None
    assert answer.transient is transient
    assert "no such thing" in answer.error
    assert len(endpoint.requests) == 1


def test_a_spent_quota_is_not_waited_for(endpoint, model):
    error = {"message": "You exceeded your quota", "code": "insufficient_quota"}
    endpoint.reply = lambda request, number: Reply({"error": error}, 429)
    (answer,) = model().ask(questions(1))
    assert answer.transient
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize("header", [{"Retry-After": "0.4"}, {"retry-after-ms": "400"}])
def test_retry_after_holds_back_all_requests(endpoint, model, header):
    endpoint.reply = lambda request, number: Reply({}, 429, header) if number == 0 else echo(request, number)
    asked = model(concurrency=1)
    answers = asked.ask(questions(3))
    assert all(answer.text for answer in answers)
    assert endpoint.times[1] - endpoint.times[0] >= 0.4
    # A model of another process with the same cache waits as well.
    endpoint.reply = lambda request, number: Reply({}, 429, header) if number == 4 else echo(request, number)
    other = model(concurrency=1)
    asked._rate.pause(0.3)
    start = time.monotonic()
    assert other.ask([Question("Something else.")])[0].text
    assert time.monotonic() - start >= 0.29


def test_an_endpoint_that_asks_for_too_long_a_wait_is_left_alone(endpoint, model):
    later = formatdate(time.time() + 3600, usegmt=True)
    endpoint.reply = lambda request, number: Reply({}, 429, {"Retry-After": later})
    start = time.monotonic()
    (answer,) = model().ask(questions(1))
    assert answer.transient
    assert len(endpoint.requests) == 1
    assert time.monotonic() - start < 1


def test_waits_grow_exponentially(endpoint, model):
    endpoint.reply = lambda request, number: Reply({}, 500)
    model(first_wait=0.05, attempts=4).ask(questions(1))
    waits = [b - a for a, b in pairwise(endpoint.times)]
    for wait, longest in zip(waits, (0.05, 0.1, 0.2), strict=True):
        assert 0.5 * longest <= wait < longest + 0.15  # the time of a request comes on top


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


def test_nothing_is_paid_for_twice(endpoint, model, tmp_path):
    endpoint.reply = lambda request, number: completion("bad" if "3" in Endpoint.prompt(request) else "good")
    check = lambda text: None if text == "good" else "It is bad."  # noqa: E731
    prices = {"input_price": 2.0, "output_price": 10.0}
    first = model(**prices).ask(questions(6, check))
    assert [answer.text for answer in first] == ["good"] * 3 + [None] + ["good"] * 2
    assert len(endpoint.requests) == 7
    cost = 7 * (100 * 2.0 + 10 * 10.0) / 1e6
    spent = total_usage(tmp_path / "cache")["tiny"]
    assert spent == Usage(7, 0, 0, 700, 70, pytest.approx(cost))

    # Another model object, as in another process or run: only what had no valid answer is asked again.
    again = model(concurrency=2, timeout=4.0, **prices).ask(questions(6, check))
    assert [answer.text for answer in again] == [answer.text for answer in first]
    assert len(endpoint.requests) == 9
    assert total_usage(tmp_path / "cache")["tiny"] == Usage(9, 5, 0, 900, 90, pytest.approx(cost * 9 / 7))


def test_equal_questions_asked_together_are_paid_for_once(endpoint, model):
    endpoint.reply = lambda request, number: Reply(completion(f"Answer {number}.").body, delay=0.05)
    answers = model(concurrency=8).ask([Question("The same.")] * 8)
    assert {answer.text for answer in answers} == {"Answer 0."}
    assert len(endpoint.requests) == 1


def test_an_answer_is_kept_for_what_decides_it(endpoint, model):
    picture = np.zeros((40, 60, 3), np.uint8)
    other = picture.copy()
    other[0, 0] = 1

    def asked(question: Question, **parameters) -> int:
        before = len(endpoint.requests)
        model(**parameters).ask([question])
        return len(endpoint.requests) - before

    assert asked(Question("A", [picture])) == 1
    assert asked(Question("A", [picture.copy()]), concurrency=1, requests_per_minute=1e6) == 0
    assert asked(Question("B", [picture])) == 1
    assert asked(Question("A", [other])) == 1
    assert asked(Question("A", [picture, picture])) == 1
    assert asked(Question("A", [picture], max_tokens=9)) == 1
    assert asked(Question("A", [picture]), model="other") == 1
    assert asked(Question("A", [picture]), temperature=0.5) == 1
    assert asked(Question("A", [picture]), image_format="png") == 1
    assert asked(Question("A", [picture]), extra_body={"top_k": 1}) == 1
    # An answer that a stricter check refuses does not count as one.
    endpoint.reply = lambda request, number: completion("New.")
    assert asked(Question("A", [picture], check=lambda text: None if text == "New." else "Old.")) == 1


def test_a_damaged_file_of_answers_costs_one_more_question(endpoint, model, tmp_path):
    model().ask(questions(1))
    (file,) = (path for path in (tmp_path / "cache").glob("*/*.json"))
    assert json.loads(file.read_text())["text"] == "Add a red ball."
    file.write_text('{"text": "Add a r')
    assert model().ask(questions(1))[0].text == "Add a red ball."
    assert len(endpoint.requests) == 2
    assert json.loads(file.read_text())["text"] == "Add a red ball."


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


def test_rates_are_kept(endpoint, model):
    asked = model(requests_per_minute=60 / 0.08, concurrency=8)
    start = time.monotonic()
    asked.ask(questions(6))
    assert time.monotonic() - start >= 5 * 0.08
    # 110 tokens each, as the endpoint counts them, at 1100 a second
    asked = model(tokens_per_minute=66_000, concurrency=1)
    start = time.monotonic()
    asked.ask([Question(f"Other {number}.", max_tokens=10) for number in range(6)])
    assert time.monotonic() - start >= 4.9 * 0.1


def test_usage_without_a_count_is_said(endpoint, model, tmp_path):
    endpoint.reply = lambda request, number: completion("Fine.", tokens=None)
    model().ask(questions(2))
    spent = total_usage(tmp_path / "cache")["tiny"]
    assert spent == Usage(requests=2, unmetered=2)
    assert "2 requests came without a count" in str(spent)


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


def test_answers_are_kept_in_the_runs_output_by_default(endpoint, model, tmp_path):
    work = Workspace(tmp_path, tmp_path / "run", tmp_path)
    asked = model(cache=None)
    ask(asked, questions(2), work)
    assert len(list((tmp_path / "run" / "answers").glob("*/*.json"))) == 2
    assert total_usage(work.output / "answers")["tiny"].requests == 2
    ask(model(cache=None), questions(2), work)
    assert len(endpoint.requests) == 2
    # A model that was told its folder keeps to it.
    ask(model(cache=str(tmp_path / "mine")), questions(2), work)
    assert len(list((tmp_path / "mine").glob("*/*.json"))) == 2


def test_without_a_run_answers_are_kept_as_long_as_the_model(endpoint, model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    asked = model(cache=None)
    for _ in range(2):
        assert asked.ask(questions(1))[0].text
    assert len(endpoint.requests) == 1
    assert len(list((tmp_path / "temporary").iterdir())) == 1
    del asked
    gc.collect()
    assert list((tmp_path / "temporary").iterdir()) == []


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
