"""What passes for an instruction."""

import pytest

from icve.curation.annotate.prompts import BANNED, SCRIPTS, change_prompt, clean, instruction_check

GOOD = [
    "Add a red hat to the man on the left.",
    "Zoom in.",
    "Remove the dog in the bottom left corner.",
    "Replace the car with a bicycle",
    "Make the woman's dress blue.",
    "Turn the scene into a watercolour painting.",
    "Change the background to a snowy forest at night.",
    "Bring the cup closer to the camera.",
    "Swing the door open.",
    "Dress the boy in a yellow raincoat.",
    "Focus on the girl in the front row.",
    "Feed the dog with the treat in the hand.",
    "Please move the lamp to the right side of the desk.",
    "Have the man raise his hand.",
    "Add a café sign that says open.",
    "Add 2.5 metres of fence behind the cow.",
    '"Add a red hat to the man."',
    "**Instruction:** Add a red hat to the man.",
    "Instruction: add a red hat to the man",
    "- Add a red hat to the man.",
]


@pytest.mark.parametrize("answer", GOOD)
def test_instructions_pass(answer):
    assert instruction_check()(answer) is None


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("", "empty"),
        ("  \n ", "empty"),
        ("...", "empty"),
        ("Add a hat. Remove the dog.", "single sentence"),
        ("Add a hat!\nRemove the dog.", "single sentence"),
        ("Shall I add a hat to the man?", "question"),
        ("Add.", "characters"),
        ("Add a hat " + "and a scarf " * 30, "characters"),
        ("Add a hat to the man in the right frame.", "'frame'"),
        ("Brighten the image on the left.", "'image'"),
        ("Make the Videos look old.", "'Videos'"),
        ("Copy the dog into the left half.", "'left half'"),
        ("Put the two dogs side-by-side.", "'side-by-side'"),
        ("The man wears a red hat.", "begins with 'the'"),
        ("A hat was added to the man.", "begins with 'a'"),
        ("Adding a hat to the man.", "begins with 'adding'"),
        ("Added a hat to the man.", "begins with 'added'"),
        ("Removes the dog from the meadow.", "begins with 'removes'"),
        ("I'm sorry, but I can't help with that.", 'begins with "i\'m"'),
        ("I cannot see any change in the scene.", "begins with 'i'"),
        ("Sorry, there is no difference.", "begins with 'sorry'"),
        ("Füge dem Mann einen roten Hut hinzu.", "English"),
        ("Ajoute un chapeau rouge pour monsieur.", "English"),
        ("给男人戴上一顶红帽子。", "English"),
        ("Добавь красную шляпу.", "English"),
        ("Add a 红 hat to the man.", "English"),
    ],
)
def test_other_answers_are_told_what_is_wrong(answer, problem):
    found = instruction_check()(answer)
    assert found is not None
    assert problem in found
    assert found.endswith(".")


@pytest.mark.parametrize(
    ("language", "answer"),
    [
        ("German", "Setze dem Mann einen roten Hut auf."),
        ("Chinese", "给男人戴上一顶红帽子。"),
        ("Chinese", "给男人穿上T恤和红色的帽子。"),
        ("Japanese", "男性に赤い帽子をかぶせてください。"),
        ("Korean", "남자에게 빨간 모자를 씌워 주세요."),
        ("Russian", "Добавь мужчине красную шляпу."),
    ],
)
def test_other_languages_are_told_by_their_script(language, answer):
    assert instruction_check(language)(answer) is None
    other = "Russian" if language != "Russian" else "Chinese"
    assert f"not written in {other}" in instruction_check(other)(answer)
    assert language in change_prompt(3, language)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="English"):
        instruction_check("Klingon")


def test_banned_words_are_a_choice():
    assert instruction_check(banned=())("Hang the picture frame on the wall.") is None
    assert "'wall'" in instruction_check(banned=("wall",))("Hang the picture frame on the wall.")


@pytest.mark.parametrize(
    ("answer", "instruction"),
    [
        ('  "add a hat"  ', "Add a hat."),
        ("Instruction: Zoom in", "Zoom in."),
        ("**Editing instruction:** zoom   out!", "Zoom out!"),
        ("给男人戴上一顶红帽子。", "给男人戴上一顶红帽子。"),
        ("", ""),
    ],
)
def test_an_answer_becomes_an_instruction(answer, instruction):
    assert clean(answer) == instruction
    assert clean(instruction) == instruction


def test_the_prompt_says_what_is_checked():
    """A model that does what it is told passes: what is banned most is named, and so are form and language."""
    prompt = change_prompt(3)
    assert all(word in prompt for word in ("3 pictures", "English", "One concise sentence", "left", "right"))
    assert all(word in prompt for word in BANNED[:3])
    assert "3 pictures" not in change_prompt(1)
    assert len(SCRIPTS) > 5
