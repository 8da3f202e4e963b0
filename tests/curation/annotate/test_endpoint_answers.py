"""Answers that are kept, so that nothing is paid for twice, and what they cost."""

from __future__ import annotations

import gc
import json
import tempfile

import numpy as np
import pytest

from icve.curation.annotate.answers import ask
from icve.curation.annotate.usage import Usage, total_usage
from icve.curation.stage import Workspace
from icve.curation.vision_language import Question
from tests.curation.annotate.http_endpoint import Endpoint, Reply, completion, questions

pytest.importorskip("openai")


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


def test_usage_without_a_count_is_said(endpoint, model, tmp_path):
    endpoint.reply = lambda request, number: completion("Fine.", tokens=None)
    model().ask(questions(2))
    spent = total_usage(tmp_path / "cache")["tiny"]
    assert spent == Usage(requests=2, unmetered=2)
    assert "2 requests came without a count" in str(spent)


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
