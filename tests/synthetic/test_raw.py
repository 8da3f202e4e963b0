from itertools import pairwise, permutations

import numpy as np
import pytest

from icve.synthetic.events import state_edits
from icve.synthetic.raw import FADE, SCENES, plan_raw_video, render_raw_video, scene_log
from icve.synthetic.vocabulary import COLOURS, is_held_out


@pytest.fixture(scope="module")
def plans():
    return [plan_raw_video("train", 0, index) for index in range(6)]


def test_scenes_and_states_cover_the_video(plans):
    for plan in plans:
        log = scene_log(plan)
        assert SCENES[0] <= len(log) <= SCENES[1]
        assert log[0]["start"] == 0
        for before, after in pairwise(log):
            assert before["end"] == after["start"]
        for scene in log:
            states = scene["states"]
            assert 30 <= scene["end"] - scene["start"] <= 48
            assert len(states) >= 2
            assert (states[0]["start"], states[-1]["end"]) == (scene["start"], scene["end"])
            assert all(state["end"] - state["start"] >= 11 for state in states)
            assert all(after["start"] - before["end"] == FADE for before, after in pairwise(states))


def test_something_describable_happens_and_nothing_held_out(plans):
    kinds = set()
    for plan in plans:
        for planned in plan:
            for before, after in permutations(planned.states, 2):
                edits = state_edits(before, after)
                for edit in edits or ():
                    kinds.add(edit.edit_type)
                    assert not is_held_out(*edit.combination)
            assert all(state_edits(a, b) != [] for a, b in pairwise(planned.states))
    assert kinds == {"add", "remove", "replace", "recolour"}


def test_a_video_is_a_function_of_its_arguments(plans):
    assert plan_raw_video("train", 0, 2) == plans[2]
    assert plan_raw_video("test", 0, 2) != plans[2]
    np.testing.assert_array_equal(render_raw_video(plans[2][:1]), render_raw_video(plans[2][:1]))


def test_the_log_tells_what_the_frames_show(plans):
    names, rgb = list(COLOURS), np.array(list(COLOURS.values()))
    directions = rgb / np.linalg.norm(rgb, axis=1, keepdims=True)
    seen = 0
    for planned in plans[0]:
        frames = render_raw_video([planned])
        for state in planned.states:
            frame = frames[(state["start"] + state["end"]) // 2]
            for obj in state["objects"]:
                if obj["shape"] == "ring":
                    continue  # its centre shows the background
                x, y = int(obj["x"] * 64), int(obj["y"] * 64)
                shown = frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).mean(axis=0)
                assert names[int(np.argmax(directions @ (shown / np.linalg.norm(shown))))] == obj["colour"]
                seen += 1
    assert seen > 20


def test_changes_are_gradual_and_cuts_are_not(plans):
    planned, following = plans[1][0], plans[1][1]
    frames = render_raw_video([planned, following]).astype(float) / 255.0
    steps = np.square(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))
    cut = planned.scene.frames - 1
    assert steps[cut] > 2 * np.delete(steps, cut).max()


def test_longer_clips_get_longer_scenes():
    for planned in plan_raw_video("train", 0, 0, frames=17):
        assert all(state["end"] - state["start"] >= 19 for state in planned.states)
