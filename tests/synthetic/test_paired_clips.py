from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from icve.data.edit_types import EDIT_TYPES
from icve.synthetic.edits import apply_edit
from icve.synthetic.instructions import TEST_TEMPLATES, TRAIN_TEMPLATES
from icve.synthetic.paired_clips import MIN_CHANGED, TURNS, make_pair, scene_seed
from icve.synthetic.render import render
from icve.synthetic.vocabulary import is_held_out


@pytest.fixture(scope="module")
def train():
    return [make_pair("train", 0, index, frames=5) for index in range(60)]


@pytest.fixture(scope="module")
def test():
    return [make_pair("test", 0, index, frames=5) for index in range(48)]


def test_a_pair_is_a_function_of_its_arguments(train):
    again = make_pair("train", 0, 7, frames=5)
    for field in ("source", "target", "mask"):
        np.testing.assert_array_equal(getattr(again, field), getattr(train[7], field))
    assert again.instruction == train[7].instruction
    assert again.scene == train[7].scene
    assert make_pair("train", 1, 7, frames=5).scene != again.scene


def test_no_scene_seed_is_in_both_splits():
    seeds = {
        split: {scene_seed("pair", split, s, i) for s in range(5) for i in range(500)} for split in ("train", "test")
    }
    assert len(seeds["train"]) == len(seeds["test"]) == 2500
    assert not seeds["train"] & seeds["test"]
    # Disjoint by construction, not by luck, and of a size that Parquet's signed integers hold.
    assert {seed % 2 for seed in seeds["train"]} == {0}
    assert {seed % 2 for seed in seeds["test"]} == {1}
    assert max(seeds["train"] | seeds["test"]) < 2**63


def test_edit_types_take_turns(train, test):
    assert set(TURNS["train"]) == set(EDIT_TYPES)
    for split, pairs in (("train", train), ("test", test)):
        turn = TURNS[split]
        assert [pair.edit.edit_type for pair in pairs] == [turn[i % len(turn)] for i in range(len(pairs))]
    assert len(set(Counter(pair.edit.edit_type for pair in test).values())) == 1


def test_training_uses_neither_held_out_combinations_nor_templates(train):
    for pair in train:
        assert pair.edit.combination is None or not is_held_out(*pair.edit.combination)
        assert "/train/" in pair.template
        assert not pair.distractors


def test_testing_uses_both(test):
    held_out = [p.edit.combination is not None and is_held_out(*p.edit.combination) for p in test]
    assert 3 <= sum(held_out) <= 20
    assert 10 <= sum("/test/" in pair.template for pair in test) <= 40


def test_instructions_come_from_the_template_named(train, test):
    for pair in (*train[:12], *test[:12]):
        kind, split, number = pair.template.split("/")
        template = (TEST_TEMPLATES if split == "test" else TRAIN_TEMPLATES)[kind][int(number)]
        literal = [word for word in template.split() if not word.startswith("{")]
        assert set(literal) <= set(pair.instruction.split())


def test_edits_are_exact_visible_and_confined_to_the_mask(train, test):
    for pair in (*train, *test):
        changed = (pair.source != pair.target).any(axis=-1)
        assert changed.mean() >= MIN_CHANGED
        assert not (changed & ~pair.mask).any()
        assert changed[pair.mask].mean() > 0.9


def test_objects_are_distinct_and_4_to_25_percent_of_the_frame(train, test):
    for pair in (*train, *test):
        objects = pair.scene.objects
        assert 1 <= len(objects) <= 3
        assert len({obj.look for obj in objects}) == len(objects)
        whole = [render(replace(pair.scene, objects=(obj,))).visible[:, 0] for obj in objects]
        visible = render(pair.scene).visible
        for number, coverage in enumerate(whole):
            assert 0.04 <= coverage[0].mean() <= 0.25
            assert visible[:, number].sum() > 0.6 * coverage.sum()


def test_test_scenes_have_several_objects_and_visibly_different_distractors(test):
    for pair in test:
        assert len(pair.scene.objects) >= 2
        assert len(pair.distractors) == len(pair.distractor_instructions) == 4
        assert len({pair.instruction, *pair.distractor_instructions}) == 5
        for wrong in pair.distractors:
            assert np.mean((wrong / 255.0 - pair.target / 255.0) ** 2) > 1e-4


def test_result_has_no_two_objects_alike(train, test):
    for pair in (*train, *test):
        looks = [obj.look for obj in apply_edit(pair.scene, pair.edit).objects]
        assert len(set(looks)) == len(looks)


def test_fine_texture_limits_the_codec(test):
    torch = pytest.importorskip("torch")
    from icve.models.weightless.dct import DCTCodec

    codec = DCTCodec()
    video = torch.from_numpy(np.stack([pair.target for pair in test])).permute(0, 4, 1, 2, 3) / 127.5 - 1.0
    with torch.no_grad():
        error = (codec.decode(codec.encode(video)).clamp(-1, 1) - video).square().mean(dim=(1, 2, 3, 4)) / 4
    psnr = float(-10 * error.log10().mean())
    assert 22.0 <= psnr <= 34.0


def test_other_sizes():
    pair = make_pair("test", 0, 3, height=96, width=64, frames=17)
    assert pair.source.shape == pair.target.shape == (17, 96, 64, 3)
    assert pair.mask.shape == (17, 96, 64)
