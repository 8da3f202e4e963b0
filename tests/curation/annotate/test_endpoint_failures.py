"""What an endpoint fails at, how long it is waited for, and what is said when it stays so."""

from __future__ import annotations

import time
from email.utils import formatdate
from types import SimpleNamespace

import pytest

from icve.curation.annotate import endpoint as http
from icve.curation.vision_language import Question
from tests.curation.annotate.http_endpoint import Endpoint, Reply, echo, questions

pytest.importorskip("openai")


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


@pytest.mark.parametrize("header", [{"Retry-After": "0.2"}, {"retry-after-ms": "200"}])
def test_retry_after_holds_back_all_requests(endpoint, model, header):
    endpoint.reply = lambda request, number: Reply({}, 429, header) if number == 0 else echo(request, number)
    asked = model(concurrency=1)
    answers = asked.ask(questions(3))
    assert all(answer.text for answer in answers)
    assert endpoint.times[1] - endpoint.times[0] >= 0.2
    # A model of another process with the same cache waits as well.
    endpoint.reply = lambda request, number: Reply({}, 429, header) if number == 4 else echo(request, number)
    other = model(concurrency=1)
    asked._rate.pause(0.3)
    start = time.monotonic()
    assert other.ask([Question("Something else.")])[0].text
    assert time.monotonic() - start >= 0.29


@pytest.fixture
def slept(monkeypatch):
    """Seconds that were to be waited, and are not; 0 where the rate asked for none."""
    slept = []
    monkeypatch.setattr(http, "time", SimpleNamespace(time=time.time, sleep=slept.append))
    return slept


def test_an_endpoint_that_asks_for_too_long_a_wait_is_left_alone(endpoint, model, slept):
    later = formatdate(time.time() + 3600, usegmt=True)
    endpoint.reply = lambda request, number: Reply({}, 429, {"Retry-After": later})
    (answer,) = model().ask(questions(1))
    assert answer.transient
    assert len(endpoint.requests) == 1
    assert not any(slept)


def test_waits_grow_exponentially(endpoint, model, slept):
    endpoint.reply = lambda request, number: Reply({}, 500)
    model(first_wait=5, longest_wait=60, attempts=4).ask(questions(1))
    waits = [wait for wait in slept if wait]
    for wait, longest in zip(waits, (5, 10, 20), strict=True):
        assert 0.5 * longest <= wait <= longest


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
