import numpy as np
import pytest

from icve.data.media.channels import LAYOUTS, channel_mix, is_custom


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layouts_of_aac_are_kept_whatever_the_order_of_their_channels(layout):
    names = LAYOUTS[layout]
    kept, matrix, note = channel_mix(names)
    assert (kept, note) == (layout, "")
    assert np.array_equal(matrix, np.eye(len(names)))
    _, matrix, _ = channel_mix(names[::-1])
    assert np.array_equal(matrix, np.eye(len(names))[:, ::-1])


@pytest.mark.parametrize(
    ("names", "layout", "said"),
    [
        ("FL FR FC LFE SL SR", "5.1", ""),  # at the side instead of behind
        ("FL FR BL BR", "5.0", ""),
        ("FL FR LFE", "5.1", ""),
        ("FL FR FC LFE SL SR BL BR", "7.1", ""),  # the order of QuickTime
        ("FL FR FC LFE BC SL SR", "5.1", "BC"),
        ("FL FR FC LFE BL BR TFL TFR", "5.1", "TFL TFR"),
        ("NONE NONE", "stereo", ""),
        ("NONE NONE NONE NONE NONE NONE", "5.1", "without names"),
        ("USR40 USR41", "stereo", ""),
        ("FL", "mono", ""),
        ("NONE", "mono", ""),
        ("DL DR", "stereo", ""),
    ],
)
def test_other_layouts_go_into_the_smallest_that_holds_them(names, layout, said):
    found, matrix, note = channel_mix(names.split())
    assert found == layout
    assert said in note
    assert (note == "") == (said == "")
    assert matrix.shape == (len(LAYOUTS[layout]), len(names.split()))
    assert np.allclose(
        (matrix**2).sum(0)[np.isin(names.split(), LAYOUTS[layout])], 1
    )  # what has a place is not changed
    assert (matrix.sum(0) > 0).all()  # every channel is heard


@pytest.mark.parametrize("names", ["", "NONE " * 12, "AMBI0", "AMBI0 AMBI1 AMBI2 AMBI3"])
def test_channels_without_a_place_are_refused(names):
    with pytest.raises(ValueError, match=r"channels"):
        channel_mix(names.split())


def test_channels_without_a_place_beside_others_are_left_out_and_told():
    layout, matrix, note = channel_mix(["FL", "FR", "USR40"])
    assert layout == "stereo"
    assert np.array_equal(matrix, [[1, 0, 0], [0, 1, 0]])
    assert "USR40" in note


def test_only_layouts_that_are_asked_for_are_chosen():
    chosen = set(LAYOUTS) - {"4.0", "5.0"}
    layout, matrix, note = channel_mix(LAYOUTS["5.0"], chosen)
    assert (layout, note) == ("5.1", "")
    assert np.array_equal(matrix.T, np.eye(6)[[0, 1, 2, 4, 5]])
    layout, matrix, note = channel_mix(LAYOUTS["4.0"], chosen)
    assert (layout, "neighbours: BC" in note) == ("5.1", True)
    assert np.allclose((matrix**2).sum(0), 1)


def test_channels_out_of_order_are_known():
    assert not any(
        is_custom(names) for names in [*LAYOUTS.values(), ["NONE", "NONE"], ["FL", "FR", "FC", "LFE", "SL", "SR"]]
    )
    assert is_custom(["FL", "FR", "FC", "LFE", "SL", "SR", "BL", "BR"])
    assert is_custom(["USR40", "USR41"])
