"""Raw videos: scenes joined by hard cuts, in each of which something changes while the camera runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from icve.synthetic.edits import added_object
from icve.synthetic.events import state_edits
from icve.synthetic.paired_clips import scene_seed
from icve.synthetic.render import render
from icve.synthetic.scenes import (
    LOOKS,
    Scene,
    SceneObject,
    choose_background,
    choose_looks,
    long_camera,
    long_motion,
    place,
)
from icve.synthetic.textures import background_canvas
from icve.synthetic.vocabulary import POSITIONS

SCENES = (10, 25)  # per video, both inclusive
FADE = 3  # frames a change takes: a sudden one would look like a cut
_KINDS = {"recolour": 0.3, "replace": 0.3, "visit": 0.3, "leave": 0.1}
_BACKGROUND_STEP = 0.25  # least distance of the mean colours (RGB, 0 to 1) of consecutive scenes


@dataclass(frozen=True)
class RawScene:
    """A scene with its history: ``states`` as in the event log, frames counted within the scene."""

    scene: Scene
    states: tuple[dict[str, Any], ...]


@dataclass
class _Actor:
    """One object through a scene: its looks (shape, colour), each with its frames [first, end).

    A visitor has the size and place of an added object, at a named position.
    """

    looks: list[tuple[tuple[str, str], int, int]]
    position: str | None = None


def plan_raw_video(
    split: str, seed: int, index: int, height: int = 64, width: int = 64, frames: int = 9
) -> list[RawScene]:
    """Scenes of raw video number ``index``, a function of the arguments alone.

    Consecutive scenes look different enough for a scene detector, every scene has room for a clip of ``frames``
    frames before and after each change, and no two of its states differ by an edit with a held-out combination.
    """
    rng = np.random.default_rng(scene_seed("raw", split, seed, index))
    scenes: list[RawScene] = []
    for _ in range(int(rng.integers(SCENES[0], SCENES[1] + 1))):
        planned = None
        while planned is None or (scenes and not _differ(scenes[-1].scene, planned.scene)):
            planned = _plan_scene(rng, height, width, frames)
        scenes.append(planned)
    return scenes


def render_raw_video(scenes: list[RawScene]) -> np.ndarray:
    """All frames, uint8 (F, H, W, 3)."""
    return np.concatenate([render(planned.scene).frames for planned in scenes])


def scene_log(scenes: list[RawScene]) -> list[dict[str, Any]]:
    """The entry ``scenes`` of the video's event log (see ``events.py``)."""
    log, start = [], 0
    for planned in scenes:
        end = start + planned.scene.frames
        states = [{**state, "start": state["start"] + start, "end": state["end"] + start} for state in planned.states]
        log.append({"start": start, "end": end, "background": planned.scene.background, "states": states})
        start = end
    return log


def _differ(one: Scene, other: Scene) -> bool:
    means = [background_canvas(scene.background, 64, 64, 26).mean(axis=(0, 1)) for scene in (one, other)]
    return bool(np.linalg.norm(means[0] - means[1]) >= _BACKGROUND_STEP)


def _plan_scene(rng: np.random.Generator, height: int, width: int, clip: int) -> RawScene | None:
    """A scene with one change, or two if it is long; None when this try did not work out."""
    edge = clip + 2  # frames of every state: a clip's length, away from a cut by a little
    frames = int(rng.integers(2 * edge + FADE + 5, 3 * edge + 2 * FADE + 10))
    count = 2 if frames >= 3 * edge + 2 * FADE and rng.random() < 0.5 else 1
    spare = frames - (count + 1) * edge - count * FADE
    waits = np.sort(rng.integers(0, spare + 1, count))
    times = [int(wait) + edge + number * (edge + FADE) for number, wait in enumerate(waits)]
    kinds = [str(kind) for kind in rng.choice(list(_KINDS), count, p=list(_KINDS.values()))]

    visitors = kinds.count("visit")
    residents = int(rng.integers(1 if visitors else 2, 4 - visitors))
    looks = choose_looks(rng, residents + visitors, [])
    actors = [_Actor([(look, 0, frames)]) for look in looks]
    for actor, position in zip(actors, rng.permutation(list(POSITIONS))[:visitors], strict=False):
        actor.position = str(position)
    guests, hosts = actors[:visitors], actors[visitors:]
    for time, kind in zip(times, kinds, strict=True):
        if kind == "visit":
            guest = guests.pop()
            look = guest.looks[0][0]
            guest.looks = [(look, 0, time)] if rng.random() < 0.5 else [(look, time, frames)]
        elif not _change(rng, kind, [host for host in hosts if host.looks[-1][2] == frames], looks, time):
            return None
    background = choose_background(rng, {look[1] for actor in actors for look, _, _ in actor.looks})
    if background is None:
        return None
    scene = Scene(height, width, frames, background, (0.0, 0.0), long_camera(rng, frames), ())
    return _stage(rng, actors, scene, times)


def _change(rng: np.random.Generator, kind: str, hosts: list[_Actor], used: list[tuple[str, str]], time: int) -> bool:
    """Let one of the hosts leave or take on a look that none ever had in this scene; False if that is impossible."""
    if not hosts:
        return False
    host = hosts[int(rng.integers(len(hosts)))]
    look, first, end = host.looks[-1]
    host.looks[-1] = (look, first, time)
    if kind == "leave":
        return True
    same_shape = kind == "recolour"
    free = [new for new in LOOKS if new not in used and (new[0] == look[0]) == same_shape and new[1] != look[1]]
    new = free[int(rng.integers(len(free)))]
    used.append(new)
    host.looks.append((new, time, end))
    return True


def _stage(rng: np.random.Generator, actors: list[_Actor], scene: Scene, times: list[int]) -> RawScene | None:
    """Give the actors places and motions, and write down the states; None if there is no room or a held-out edit."""
    scene = replace(scene, origin=(float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2))))
    hosts = [actor for actor in actors if actor.position is None]
    guests = [actor for actor in actors if actor.position is not None]
    for guest in guests:
        added = added_object(scene, *guest.looks[0][0], str(guest.position))
        scene = replace(scene, objects=(*scene.objects, added))
    motions = [long_motion(rng, scene.frames) for _ in hosts]
    placed = place(rng, scene, [host.looks[0][0] for host in hosts], motions)
    if placed is None:
        return None
    # Those who visit stand in front, as added objects do.
    objects = placed.objects[len(guests) :] + placed.objects[: len(guests)]
    cast = list(zip(hosts + guests, objects, strict=True))

    layers = tuple(layer for actor, obj in cast for layer in _layers(actor, obj, placed.frames))
    bounds = [(0, 0), *((time, time + FADE) for time in times), (scene.frames, scene.frames)]
    states = tuple(_state(placed, cast, start, end) for (_, start), (end, _) in pairwise(bounds))
    for before, after in permutations(states, 2):
        if any(edit.is_held_out for edit in state_edits(before, after) or ()):
            return None
    return RawScene(replace(placed, objects=layers), states)


def _layers(actor: _Actor, obj: SceneObject, frames: int) -> list[SceneObject]:
    """One object per look; its opacity rises and falls over a change.

    Under a new colour the old one stays opaque, so that nothing shines through.
    """
    layers = []
    time = np.arange(frames)
    for number, ((shape, colour), first, end) in enumerate(actor.looks):
        rise = np.clip((time - first + 1) / (FADE + 1), 0.0, 1.0) if first > 0 else np.ones(frames)
        fall = np.clip(1.0 - (time - end + 1) / (FADE + 1), 0.0, 1.0) if end < frames else np.ones(frames)
        if number + 1 < len(actor.looks) and actor.looks[number + 1][0][0] == shape:
            fall = (time < end + FADE).astype(float)
        layers.append(replace(obj, shape=shape, colour=colour, opacity=tuple(np.minimum(rise, fall))))
    return layers


def _state(scene: Scene, cast: list[tuple[_Actor, SceneObject]], start: int, end: int) -> dict[str, Any]:
    objects = []
    for actor, obj in cast:
        x, y = scene.placement(obj)[0][(start + end) // 2]
        spot = {"x": round(float(x) / scene.width, 4), "y": round(float(y) / scene.height, 4)}
        for (shape, colour), first, last in actor.looks:
            if first <= start and end <= last:
                look = {"identity": obj.identity, "shape": shape, "colour": colour, "position": actor.position}
                objects.append({**look, **spot, "size": round(obj.size, 4)})
    return {"start": start, "end": end, "objects": objects}
