import pytest

from icve.curation.edit_pairs.parse_json import parse_json


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2]}',
        '```json\n{"a": [1, 2]}\n```',
        'Here you are: {"a": [1, 2]} I hope this helps {you}.',
    ],
)
def test_json_is_found_whatever_stands_around_it(text):
    assert parse_json(text) == {"a": [1, 2]}


@pytest.mark.parametrize("text", ["", "I am sorry.", '{"a": [1, 2}', "5 5", "[" * 100_000])
def test_what_is_no_json_is_said_in_a_sentence(text):
    with pytest.raises(ValueError, match=r"^The answer is not JSON\.$"):
        parse_json(text)
