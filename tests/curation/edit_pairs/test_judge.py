import numpy as np
import pytest

from icve.curation.edit_pairs.judge import Judge, check_marks, parse_marks
from icve.curation.stage import Rejected
from icve.data.media.video import read_frames, write_video
from tests.curation.edit_pairs.scripted import Scripted, clip_row, moving_square, workspace

FULL = '{"instruction": 5, "quality": 5}'


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


def pair(work, key: str = "pair", target: np.ndarray | None = None, **columns) -> dict:
    target = moving_square()[0][:, ::-1] if target is None else target
    write_video(work.output / "targets" / f"{key}.mp4", target, 8, crf=4)
    paths = {"target_path": f"targets/{key}.mp4", "instruction": "Turn the {scene} upside down."}
    return clip_row(work, key) | paths | columns


def test_full_marks_stay(work):
    row = pair(work)
    assert Judge(Scripted(FULL))([row], work) == [{**row, "judge_instruction": 5.0, "judge_quality": 5.0}]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"instruction": 4, "quality": 5}', "instruction not followed"),
        ('{"instruction": 5, "quality": 4}', "poor quality"),
        ('{"instruction": 1, "quality": 1}', "instruction not followed"),
    ],
)
def test_less_is_rejected_with_its_reason(work, answer, reason):
    (outcome,) = Judge(Scripted(answer))([pair(work)], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    assert "5 wanted" in outcome.detail


def test_the_bar_is_a_parameter(work):
    (outcome,) = Judge(Scripted("4 4"), keep=4)([pair(work)], work)
    assert (outcome["judge_instruction"], outcome["judge_quality"]) == (4.0, 4.0)


def test_the_model_sees_the_same_moments_side_by_side_and_the_instruction(work):
    row, model = pair(work), Scripted(FULL)
    Judge(model, pairs=3)([row], work)
    (question,) = model.asked
    assert '"Turn the {scene} upside down."' in question.prompt
    assert '{"instruction": 3, "quality": 4}' in question.prompt
    source, target = (read_frames(work.file(row, f"{side}_path"), [1, 4, 7]) for side in ("source", "target"))
    for picture, left, right in zip(question.images, source, target, strict=True):
        np.testing.assert_array_equal(picture[:, :80], left)
        np.testing.assert_array_equal(picture[:, -80:], right)


def test_targets_of_another_size_and_large_frames_are_brought_to_one(work):
    small = moving_square(size=(36, 60))[0]
    model = Scripted(FULL)
    Judge(model, frame_side=40)([pair(work, target=small)], work)
    assert {picture.shape for picture in model.asked[0].images} == {(24, 40 + 16 + 40, 3)}


def test_repeats_look_at_other_moments_and_are_averaged(work):
    replies = iter([FULL, '{"instruction": 5, "quality": 4}', FULL, FULL])
    model = Scripted(lambda question: next(replies))
    first, second = Judge(model, repeats=2, keep=4.5, pairs=2)([pair(work, "a"), pair(work, "b")], work)
    assert (first["judge_instruction"], first["judge_quality"]) == (5.0, 4.5)
    assert (second["judge_instruction"], second["judge_quality"]) == (5.0, 5.0)
    assert len(model.asked) == 4
    assert any((a != b).any() for a, b in zip(model.asked[0].images, model.asked[1].images, strict=True))


def test_the_clips_of_a_row_are_ranges_of_their_files(work):
    row, model = pair(work, source_start=4, source_frames=3, target_start=2, target_frames=5), Scripted(FULL)
    Judge(model, pairs=1)([row], work)
    (picture,) = model.asked[0].images
    np.testing.assert_array_equal(picture[:, :80], read_frames(work.file(row, "source_path"), [5])[0])
    np.testing.assert_array_equal(picture[:, -80:], read_frames(work.file(row, "target_path"), [3])[0])


def test_without_a_usable_answer_a_row_is_not_judged(work):
    rows = [pair(work, "a"), pair(work, "b")]
    assert Judge(Scripted(None))(rows, work) == [Rejected("not judged", "no connection", transient=True)] * 2
    (outcome,) = Judge(Scripted("Great work, well done!"))(rows[:1], work)
    assert (outcome.reason, outcome.transient) == ("not judged", False)


def test_rows_and_marks_are_kept_together(work):
    rows = [pair(work, f"p{number}", instruction=f"Do {number}.") for number in range(4)]
    model = Scripted(lambda question: "4 5" if '"Do 2."' in question.prompt else FULL)
    outcomes = Judge(model)(rows, work)
    assert [isinstance(outcome, Rejected) for outcome in outcomes] == [False, False, True, False]
    assert [outcomes[number]["key"] for number in (0, 1, 3)] == ["p0", "p1", "p3"]


@pytest.mark.parametrize(
    "text", ["4 3", "4, 3", "4/3", ' {"quality": 3, "instruction": 4} ', "```json\n" + FULL + "```"]
)
def test_marks_are_read_in_both_forms(text):
    assert parse_marks(text) == ((5, 5) if "5" in text else (4, 3))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "6 5",
        "5 5 5",
        "0 5",
        "[5, 5]",
        '{"instruction": 5}',
        '{"instruction": 5, "quality": 5.5}',
        '{"instruction": true, "quality": 5}',
        '{"instruction": "5", "quality": 5}',
        '{"instruction": 9, "quality": 5}',
    ],
)
def test_other_answers_are_not_taken_for_marks(text):
    assert check_marks(text)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="keep"):
        Judge(Scripted(FULL), keep=6)
