import json

import numpy as np
import pytest

from icve.curation.edit_pairs.label import Label, check_items
from icve.curation.edit_pairs.requests import EDITS
from icve.curation.stage import Rejected
from icve.data.media.video import read_frames
from tests.curation.edit_pairs.scripted import Scripted, clip_row, workspace


def items(*entries: tuple[str, str, bool]) -> str:
    return json.dumps({"items": [{"phrase": p, "layer": layer, "clear": clear} for p, layer, clear in entries]})


GOOD = items(
    ("the red square", "foreground", True),
    ("grey wall", "background", True),
    ("crowd of dots", "foreground", False),
    ("Red square", "foreground", True),
)


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


def test_each_clear_thing_gives_a_row_per_edit_of_its_layer(work):
    row = clip_row(work) | {"video": "raw.mp4"}
    (labelled,) = Label(Scripted(GOOD), edits_per_item=9)([row], work)
    expected = {("red square", "foreground", name) for name in ("remove", "replace", "recolour")}
    expected.add(("grey wall", "background", "background"))
    assert {(new["object"], new["layer"], new["edit_type"]) for new in labelled} == expected
    assert len(labelled) == 4
    assert all(row.items() <= new.items() for new in labelled)


def test_the_draw_of_edits_depends_on_key_and_seed_alone(work):
    rows = [clip_row(work, f"clip{number}") for number in range(12)]
    answer = items(("ball", "foreground", True))

    def drawn(seed: int, rows: list[dict]) -> list[str]:
        return [outcome[0]["edit_type"] for outcome in Label(Scripted(answer), seed=seed)(rows, work)]

    first = drawn(0, rows)
    assert set(first) == {"remove", "replace", "recolour"}
    assert drawn(0, rows[::-1]) == first[::-1]
    assert drawn(1, rows) != first


def test_the_most_noticeable_things_are_taken(work):
    answer = items(*((f"thing {number}", "foreground", True) for number in range(6)))
    (labelled,) = Label(Scripted(answer), most_items=2)([clip_row(work)], work)
    assert [row["object"] for row in labelled] == ["thing 0", "thing 1"]


def test_the_model_sees_frames_of_the_clip(work):
    row = clip_row(work)
    model = Scripted(GOOD)
    stage = Label(model, frames=3)
    stage.setup()
    stage([row], work)
    assert model.ready
    shown = np.stack(model.asked[0].images)
    np.testing.assert_array_equal(shown, read_frames(work.output / row["source_path"], [1, 4, 7]))


def test_clips_without_anything_clear_are_rejected_with_what_was_seen(work):
    unclear = items(("crowd of dots", "foreground", False), ("wall", "background", True))
    (outcome,) = Label(Scripted(unclear), edits=["remove"])([clip_row(work)], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "nothing to edit"
    assert "crowd of dots, wall" in outcome.detail


def test_garbage_refusals_and_lost_connections_are_rejections(work):
    row = clip_row(work)
    for reply in ("I cannot help with that.", '{"items": 5}'):
        (outcome,) = Label(Scripted(reply))([row], work)
        assert outcome.reason == "no labels"
        assert not outcome.transient
    (outcome,) = Label(Scripted(None))([row], work)
    assert outcome == Rejected("no labels", "no connection", transient=True)


def test_a_corrected_answer_counts(work):
    replies = iter(["no JSON", GOOD])
    (labelled,) = Label(Scripted(lambda question: next(replies)))([clip_row(work)], work)
    assert {row["object"] for row in labelled} == {"red square", "grey wall"}


def test_answers_and_rows_are_kept_together(work):
    rows = [clip_row(work, name, np.full((3, 32, 32, 3), level, np.uint8)) for name, level in (("a", 40), ("b", 200))]

    def reply(question):
        return items(("dark thing" if question.images[0].mean() < 128 else "light thing", "foreground", True))

    dark, light = Label(Scripted(reply))(rows, work)
    assert (dark[0]["key"], dark[0]["object"]) == ("a", "dark thing")
    assert (light[0]["key"], light[0]["object"]) == ("b", "light thing")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sorry", "not JSON"),
        ('{"things": []}', '"items"'),
        ('{"items": [{"phrase": "x"}]}', '"layer"'),
        (items(("x", "middle", True)), '"middle"|middle'),
        ('{"items": [{"phrase": 3, "layer": "foreground", "clear": true}]}', "phrase"),
        ('{"items": [{"phrase": "x", "layer": "foreground", "clear": "yes"}]}', "true or false"),
        (items(("one two three four five six seven eight nine", "foreground", True)), "too long"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(text, complaint):
    import re

    assert re.search(complaint, check_items(text))


def test_good_answers_pass_and_a_bare_list_too():
    assert check_items(GOOD) is None
    assert check_items(json.dumps(json.loads(GOOD)["items"])) is None


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="There is no edit 'vanish'"):
        Label(Scripted(""), edits=["vanish"])
    with pytest.raises(ValueError, match="at least 1"):
        Label(Scripted(""), most_items=0)
    assert set(EDITS) == {"remove", "replace", "recolour", "background"}
