import numpy as np
import pytest

from icve.data.manifest import read_manifest
from icve.evaluation.synthetic import evaluate
from icve.synthetic.edits import apply_edit, render_edit
from icve.synthetic.hard_pairs import HARD_SPLITS, HIDDEN, hidden_shares, known_words, make_hard_pair
from icve.synthetic.instructions import COMPOUND, PARAPHRASES
from icve.synthetic.misspelling import misspell
from icve.synthetic.pair_files import synthesize_pairs
from icve.synthetic.paired_clips import MIN_CHANGED
from icve.synthetic.render import render
from icve.synthetic.vocabulary import EDIT_TYPES


@pytest.fixture(scope="module")
def pairs():
    return {
        name: [make_hard_pair(name, 0, index, 48, 48, max(5, split.least_frames)) for index in range(6)]
        for name, split in HARD_SPLITS.items()
    }


def test_pairs_are_exact_and_differ_from_their_four_wrong_results(pairs):
    for name, made in pairs.items():
        for index, pair in enumerate(made):
            changed = (pair.source != pair.target).any(axis=-1)
            assert changed.mean() >= MIN_CHANGED
            assert not (changed & ~pair.mask).any()
            assert len({pair.instruction, *pair.distractor_instructions}) == len(pair.distractors) + 1 == 5
            for wrong in pair.distractors:
                assert np.mean((wrong / 255.0 - pair.target / 255.0) ** 2) > 1e-4
            assert EDIT_TYPES[index] in pair.edit_type.split("+")
            assert pair.scene_seed % 2 == 1, name  # no scene of training


def test_a_pair_is_a_function_of_its_arguments(pairs):
    again = make_hard_pair("compound", 0, 3, 48, 48, frames=5)
    np.testing.assert_array_equal(again.target, pairs["compound"][3].target)
    assert again.instruction == pairs["compound"][3].instruction
    assert make_hard_pair("compound", 1, 3, 48, 48, frames=5).scene != again.scene


def test_many_objects_among_which_one_has_the_shape_and_one_the_colour(pairs):
    for pair in pairs["objects"]:
        looks = [obj.look for obj in pair.scene.objects]
        assert 4 <= len(set(looks)) == len(looks) <= 5
        if shape := pair.edit.shape:
            others = [look for look in looks if look != (shape, pair.edit.colour)]
            assert shape in {look[0] for look in others}
            assert pair.edit.colour in {look[1] for look in others}


def test_occluded_objects_are_partly_hidden_and_never_gone(pairs):
    for pair in pairs["occlusion"]:
        scene = apply_edit(pair.scene, pair.edit) if pair.edit.edit_type == "add" else pair.scene
        hidden = hidden_shares(scene)
        assert ((hidden >= HIDDEN).mean(0) >= 1 / 3).any()
        assert hidden.mean(0).max() <= 0.65


def test_the_camera_moves_and_wrong_is_what_does_not_follow_it(pairs):
    for pair in pairs["camera"]:
        (pan, zoom), unit = pair.scene.view, pair.scene.unit
        assert np.abs(pan).max() > 0.03 * unit or np.abs(zoom - 1).max() > 0.1
        if pair.edit.edit_type in ("add", "background"):
            assert pair.distractor_instructions[-1].endswith(", fixed to the frame")
            fixed = pair.distractors[-1]
            # The camera starts where it would stand still, so that only later frames differ.
            assert np.abs(fixed[0].astype(int) - pair.target[0]).max() <= 1
            assert np.abs(fixed[-1].astype(int) - pair.target[-1]).max() > 50


def test_two_edits_are_both_done_and_each_alone_is_wrong(pairs):
    for pair in pairs["compound"]:
        first, second = pair.edit, *pair.more_edits
        assert first.edit_type != second.edit_type
        scene = apply_edit(pair.scene, first)
        both = render_edit(scene, render(scene), second)[0]
        if first.edit_type != "style":
            np.testing.assert_array_equal(pair.target, both)
        np.testing.assert_array_equal(pair.distractors[0], render_edit(pair.scene, render(pair.scene), first)[0])
        joints = [template.replace("{first}", "").replace("{second}", "") for template in COMPOUND]
        assert any(joint in pair.instruction for joint in joints)


def test_paraphrases_say_what_the_edit_is_in_other_words(pairs):
    for pair in pairs["paraphrase"]:
        kind, _, number = pair.template.split("/")
        assert kind == pair.edit.edit_type
        literal = [word for word in PARAPHRASES[kind][int(number)].split() if not word.startswith("{")]
        assert not set(literal) <= known_words()
        for value in (pair.edit.shape, pair.edit.new_colour, pair.edit.background, pair.edit.style):
            assert value in pair.instruction


def test_misspelt_words_are_none_that_exist_and_begin_alike():
    rng, known = np.random.default_rng(0), known_words()
    for text in ("please swap the purple triangle with a yellow cross", "use a black and white style"):
        for _ in range(20):
            wrong = misspell(text, rng, known)
            pairs = [(a, b) for a, b in zip(text.split(), wrong.split(), strict=True) if a != b]
            assert len(pairs) == 2
            assert all(b not in known and a[0] == b[0] and abs(len(a) - len(b)) <= 1 for a, b in pairs)


def test_a_gradual_edit_grows_from_nothing_to_the_whole(pairs):
    for pair in pairs["gradual"]:
        at_once = pair.distractors[0]
        np.testing.assert_array_equal(pair.target[0], pair.source[0])
        np.testing.assert_array_equal(pair.target[-1], at_once[-1])
        half = (pair.source[2].astype(float) + at_once[2]) / 2
        assert np.abs(pair.target[2] - half).max() <= 0.5
        assert not pair.mask[0].any()


def test_splits_are_written_together_and_measured_apart(tmp_path):
    manifest = synthesize_pairs(tmp_path, 2, split=["test", "gradual"], seed=1, sizes=[(32, 32)], frames=5)
    rows = read_manifest(manifest)
    assert [row["split"] for row in rows] == ["test", "test", "gradual", "gradual"]
    targets = {row["id"]: tmp_path / row["target_path"] for row in rows}
    # What does a gradual edit at once has done a wrong one.
    at_once = {row["id"]: tmp_path / row["distractor_paths"][0] for row in rows if row["split"] == "gradual"}
    figures = evaluate(targets | at_once, manifest, progress=False).figures
    shares = {name: group["success_ratio"] for name, group in figures["per_split"].items()}
    assert shares == {"test": 1.0, "gradual": 0.0}
    alone = evaluate(targets | at_once, manifest, progress=False, splits=["gradual"]).figures
    assert alone["count"] == 2
    assert "per_split" not in alone
    with pytest.raises(ValueError, match="no edit of split typos: the test set has test, gradual"):
        evaluate(targets, manifest, progress=False, splits=["typos"])


def test_clips_too_short_for_a_split_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Split gradual needs clips of at least 5 frames, not 1"):
        synthesize_pairs(tmp_path / "out", 1, split="gradual", frames=1)
    assert not (tmp_path / "out").exists()
