import numpy as np

from icve.data.manifest import read_manifest, resolve_path
from icve.data.masks import load_mask
from icve.data.media.still_picture import read_picture
from icve.synthetic.condition_files import synthesize_conditions
from icve.synthetic.condition_pairs import make_condition_pair


def test_the_mask_alone_tells_twins_apart():
    pair = make_condition_pair("train", 0, 0, frames=3)
    other, both = pair.distractors
    assert pair.reference is None
    changed = (pair.source != pair.target).any(-1)
    assert not (changed & ~pair.mask).any()
    assert (changed & pair.mask).any()
    # The other twin's edit leaves the pixels under the mask, as far as the twins do not touch, and both is both.
    assert ((other != pair.source).any(-1) & ~pair.mask).any()
    assert (both[pair.mask] == pair.target[pair.mask]).mean() > 0.9
    again = make_condition_pair("train", 0, 0, frames=3)
    np.testing.assert_array_equal(again.target, pair.target)


def test_the_words_do_not_say_what_the_picture_shows():
    pair = make_condition_pair("test", 0, 1, frames=3)
    assert pair.edit.edit_type == "add"
    assert pair.edit.position in pair.instruction
    assert pair.edit.shape not in pair.instruction
    assert pair.edit.colour not in pair.instruction
    assert pair.reference.shape == pair.swapped.shape == (64, 64, 4)
    assert len(pair.distractors) == 12  # six shapes in two colours but the right one, and one elsewhere
    clips = [pair.source, pair.target, *pair.distractors]
    assert len({clip.tobytes() for clip in clips}) == 14


def test_files_and_manifest(tmp_path):
    manifest = read_manifest(synthesize_conditions(tmp_path, 4, "test", seed=3, frames=5))
    assert [row["condition"] for row in manifest] == ["mask", "reference"] * 2
    for number, row in enumerate(manifest):
        pair = make_condition_pair("test", 3, number, frames=5)
        np.testing.assert_array_equal(load_mask(resolve_path(manifest.root, row["mask_path"])), pair.mask)
        assert len(row["distractor_paths"]) == len(pair.distractors)
        if pair.reference is not None:
            picture = read_picture(resolve_path(manifest.root, row["reference_path"]))
            opaque = pair.reference[..., 3] == 255
            np.testing.assert_array_equal(picture[opaque], pair.reference[..., :3][opaque])
