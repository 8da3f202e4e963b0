import re

import pytest

from icve.curation.instruction_stages import DropTrivial, RewriteVerbs, is_trivial, rewordings
from icve.curation.stage import Rejected, Workspace

WORK = Workspace(None, None, None)


@pytest.mark.parametrize(
    ("instruction", "among"),
    [
        ("Replace the swan with a cat.", {"Change the swan into a cat.", "Swap the swan for a cat.",
                                          "Substitute a cat for the swan."}),
        ("turn the video into a sketch", {"transform the video into a sketch", "convert the video into a sketch"}),
        ("Change the colour of the car to red", {"Alter the colour of the car to red"}),
        ("Make the dress red", {"Turn the dress red", "Change the colour of the dress to red"}),
        ("Add a hat on the man's head", {"Place a hat on the man's head", "Put a hat on the man's head"}),
        ("Add a brown dog", {"Insert a brown dog", "Include a brown dog"}),
        ("Please remove the bowl!", {"Please delete the bowl!", "Please get rid of the bowl!"}),
        ("Pan the camera to the left", {"Swing the camera to the left"}),
        ("Swap the cup for a vase", {"Replace the cup with a vase"}),
    ],
)  # fmt: skip
def test_the_words_around_a_verb_change_with_it(instruction, among):
    wordings = rewordings(instruction)
    assert among <= set(wordings)
    assert instruction not in wordings
    assert len(set(wordings)) == len(wordings)


@pytest.mark.parametrize(
    "instruction",
    [
        "Replace the man with a hat with a dog",  # which of them is replaced?
        "Add a dog to the sofa",
        "Make the man smile",
        "Zoom in",
        "A red dress",
        "",
    ],
)
def test_what_has_no_plain_rewording_stays(instruction):
    assert rewordings(instruction) == []


def test_nothing_that_follows_is_torn_apart():
    wordings = rewordings("Replace the cat with a dog and remove the bowl")
    assert "Swap the cat for a dog and remove the bowl" in wordings
    assert all(wording.endswith("a dog and remove the bowl") for wording in wordings)


def test_a_preposition_of_the_new_form_is_not_used_twice():
    wordings = rewordings("Replace the milk poured into the cup with juice")
    assert wordings
    assert all(len(re.findall(r"\binto\b", wording)) == 1 for wording in wordings)


def test_rewriting_is_seeded_by_the_key_and_keeps_the_original():
    rows = [{"key": f"row-{i}", "instruction": "Replace the swan with a cat."} for i in range(400)]
    stage = RewriteVerbs(probability=0.5, seed=3)
    outcomes = stage(rows, WORK)
    assert outcomes == [stage([row], WORK)[0] for row in rows]
    assert {row["instruction_original"] for row in outcomes} == {"Replace the swan with a cat."}
    changed = [row["instruction"] for row in outcomes if row["instruction"] != row["instruction_original"]]
    assert 150 < len(changed) < 250
    assert set(changed) == set(rewordings("Replace the swan with a cat."))
    assert outcomes != RewriteVerbs(probability=0.5, seed=4)(rows, WORK)
    assert RewriteVerbs(probability=0)(rows, WORK)[0]["instruction"] == rows[0]["instruction"]
    (always,) = RewriteVerbs(probability=1)(rows[:1], WORK)
    assert always["instruction"] != rows[0]["instruction"]
    with pytest.raises(ValueError, match="probability"):
        RewriteVerbs(probability=1.5)


@pytest.mark.parametrize(
    "instruction",
    [
        "Make it brighter",
        "make the video slightly darker.",
        "Increase the contrast",
        "Boost the saturation by 20 percent and lower the brightness",
        "Adjust the exposure of the whole scene",
        "Make the colours more vivid",
        "Desaturate the image",
        "Change the white balance to a warmer tone",
        "Sharpen the footage",
    ],
)
def test_changes_of_tone_alone_are_trivial(instruction):
    assert is_trivial(instruction)
    (outcome,) = DropTrivial()([{"key": "a", "instruction": instruction}], WORK)
    assert isinstance(outcome, Rejected)
    assert outcome.detail == instruction


@pytest.mark.parametrize(
    "instruction",
    [
        "Add a bright lamp",
        "Make the dress red",
        "Make the dress darker",
        "Turn on the light",
        "Replace the dark sky with a bright sunset",
        "Remove the high contrast poster",
        "Change the colour of the car to a vivid blue",
        "Add more light",
        "Make it night",
        "Turn the video into a black and white sketch",
        "Sharpen the pencil",
        "",
    ],
)
def test_honest_instructions_pass(instruction):
    row = {"key": "a", "instruction": instruction}
    assert DropTrivial()([row], WORK) == [row]
