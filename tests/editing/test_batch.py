import threading

import numpy as np
import pytest
import torch

from icve.data.media import sound
from icve.data.media.video import VideoError, probe, read_frames
from icve.editing.batch import batch_size_for, edit_items
from icve.editing.items import Item
from icve.editing.jobs import Progress, Settings, clip_of
from icve.editing.results import result_row
from tests.data.media.test_picture import encode
from tests.data.media.test_sound import process, tones, with_sound
from tests.tiny import tiny_editor

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 2.0, "guidance_until": 0.0, "shift": 5.0, "negative_prompt": ""}


def item(path, name="a", instruction="make it red", seed=0, **changes) -> Item:
    return Item(name, name, path, str(path), instruction, seed, **changes)


def settings(**changes) -> Settings:
    return Settings(sampling=SAMPLING, window=5, budget=32 * 32, **changes)


def plan(items, chosen):
    groups = {}
    for entry in items:
        groups.setdefault((entry.source, entry.start, entry.count), []).append(entry)
    work = [(clip_of(group[0], chosen), group) for group in groups.values()]
    return sorted(work, key=lambda pair: pair[0].shape)


def run(editor, items, folder, chosen=None, **options):
    chosen = chosen or settings()
    outcomes = edit_items(editor, plan(items, chosen), chosen, lambda i: folder / f"{i.name}.mp4", **options)
    return {outcome.item.id: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def editor():
    return tiny_editor()


class Spy:
    """Counts the calls of an editor."""

    def __init__(self, editor):
        self.editor, self.encoded, self.batches = editor, 0, []

    def __getattr__(self, name):
        return getattr(self.editor, name)

    def encode_video(self, video):
        self.encoded += len(video)
        return self.editor.encode_video(video)

    def edit_latents(self, latents, instructions, **settings):
        self.batches.append(list(instructions))
        return self.editor.edit_latents(latents, instructions, **settings)


def test_windows_are_batched_across_items_and_sources_and_sources_encoded_once(editor, make_clip, tmp_path):
    clips = [make_clip(f"{n}.mp4", frames=5, seed=n) for n in range(3)]
    items = [item(clip, f"{clip.stem}{n}", f"do {n}") for clip in clips for n in range(4)]
    spy = Spy(editor)
    outcomes = run(spy, items, tmp_path / "out", settings(batch_size=5))
    assert all(outcome.error is None for outcome in outcomes.values())
    assert [len(batch) for batch in spy.batches] == [5, 5, 2]
    assert spy.encoded == 3
    assert len(list((tmp_path / "out").iterdir())) == 12


def test_sizes_are_not_mixed_and_a_short_batch_is_edited_too(editor, make_clip, tmp_path):
    items = [item(make_clip("a.mp4"), "a"), item(make_clip("b.mp4", size=(32, 64)), "b"), item(make_clip("c.mp4"), "c")]
    spy = Spy(editor)
    assert all(outcome.error is None for outcome in run(spy, items, tmp_path / "out").values())
    assert sorted(len(batch) for batch in spy.batches) == [1, 2]


def test_a_result_does_not_depend_on_its_batch(editor, make_clip, tmp_path):
    long = make_clip("long.mp4", frames=14)
    items = [item(long, "a", "make it red", 3), item(long, "b", "remove the large dog on the left", 4)]
    items += [item(make_clip(f"{n}.mp4", seed=n), str(n), f"paint it {n} times", n) for n in range(3)]
    together = run(editor, items, tmp_path / "together", settings(batch_size=7))
    for entry in items:
        run(editor, [entry], tmp_path / "alone", settings(batch_size=1))
        a, b = (read_frames(tmp_path / folder / f"{entry.name}.mp4") for folder in ("together", "alone"))
        assert np.abs(a.astype(int) - b).max() <= 4  # one level before H.264
        assert np.abs(a.astype(int) - b).mean() < 0.02
    assert len(together) == 5


def test_bad_items_cost_nobody_else(editor, make_clip, tmp_path):
    good, broken = make_clip("good.mp4"), make_clip("broken.mp4", frames=30)
    items = [item(broken, "broken1"), item(broken, "broken2"), item(good, "good")]
    work = plan(items, settings())
    data = bytearray(broken.read_bytes())
    middle = data.index(b"mdat") + 4
    data[middle + 200 :] = bytes(len(data) - middle - 200)  # decodes to nothing after the first frames
    broken.write_bytes(data)
    outcomes = {
        o.item.id: o for o in edit_items(editor, work, settings(), lambda i: tmp_path / "out" / f"{i.name}.mp4")
    }
    assert outcomes["good"].error is None
    for name in ("broken1", "broken2"):
        assert outcomes[name].error.startswith("It cannot be decoded: it ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.mp4"]


def test_a_model_that_fails_on_one_item_edits_the_others(editor, make_clip, tmp_path):
    class Fails(Spy):
        def edit_latents(self, latents, instructions, **settings):
            if "do 2" in instructions:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
            return super().edit_latents(latents, instructions, **settings)

    clip = make_clip("a.mp4")
    outcomes = run(Fails(editor), [item(clip, str(n), f"do {n}") for n in range(5)], tmp_path / "out")
    assert "out of memory" in outcomes["2"].error
    assert [n for n, outcome in outcomes.items() if outcome.error is None] == ["0", "1", "3", "4"]
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["0", "1", "3", "4"]


def test_a_result_that_is_not_finite_fails(editor, make_clip, tmp_path):
    class Diverges(Spy):
        def edit_latents(self, latents, instructions, **settings):
            result = super().edit_latents(latents, instructions, **settings)
            result[1] = torch.nan
            return result

    clip = make_clip("a.mp4")
    outcomes = run(Diverges(editor), [item(clip, str(n)) for n in range(3)], tmp_path / "out")
    assert [outcomes[n].error is None for n in "012"] == [True, False, True]
    assert "not finite" in outcomes["1"].error


def test_a_file_that_cannot_be_written_fails_alone(editor, make_clip, tmp_path):
    clip = make_clip("a.mp4")
    (tmp_path / "out" / "1.mp4").mkdir(parents=True)
    outcomes = run(editor, [item(clip, str(n)) for n in range(3)], tmp_path / "out")
    assert "cannot be written: Is a directory." in outcomes["1"].error
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.mp4", "1.mp4", "2.mp4"]


def test_stopping_half_way_leaves_whole_files_only_and_no_thread(editor, make_clip, tmp_path):
    clips = [make_clip(f"{n}.mp4", frames=23, seed=n) for n in range(4)]
    chosen = settings(batch_size=1)
    items = [item(clip, clip.stem) for clip in clips]
    outcomes = edit_items(editor, plan(items, chosen), chosen, lambda i: tmp_path / "out" / f"{i.name}.mp4")
    next(outcomes)
    outcomes.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("icve-")]
    for path in (tmp_path / "out").iterdir():
        assert path.suffix == ".mp4"
        assert len(read_frames(path)) == 23


def test_seconds_are_counted_by_kind(editor, make_clip, tmp_path):
    progress, windows = Progress(), []
    run(
        editor,
        [item(make_clip("a.mp4", frames=14))],
        tmp_path / "out",
        progress=progress,
        on_window=lambda: windows.append(1),
    )
    assert len(windows) == len(clip_of(item(tmp_path / "a.mp4"), settings()).spans) == 4
    assert all(seconds > 0 for seconds in progress.seconds.values())


def test_part_of_a_file(editor, make_clip, tmp_path):
    clip = make_clip("a.mp4", frames=20)
    run(editor, [item(clip, start=4, count=7), item(clip, "rest", start=15)], tmp_path / "out")
    assert len(read_frames(tmp_path / "out" / "a.mp4")) == 7
    assert len(read_frames(tmp_path / "out" / "rest.mp4")) == 5
    with pytest.raises(VideoError, match="it has 20 frames"):
        clip_of(item(clip, start=15, count=7), settings())


def test_sound_that_is_lost_is_a_note_and_no_error(editor, tmp_path, monkeypatch):
    source = with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono")
    outcome = run(editor, [item(source)], tmp_path / "whole")["a"]
    assert (outcome.error, outcome.note) == (None, None)
    monkeypatch.setattr(sound, "start", lambda *_, **__: process("import os; os.abort()"))
    outcome = run(editor, [item(source)], tmp_path / "out")["a"]
    assert outcome.error is None
    assert outcome.note == "The sound is left out: FFmpeg crashes or hangs when it reads it."
    assert result_row(outcome, settings(), [tmp_path], "key")["note"] == outcome.note
    assert len(read_frames(tmp_path / "out" / "a.mp4")) == 20


def test_a_result_that_is_sdr_or_progressive_unlike_its_source_says_so(editor, tmp_path):
    frames = np.full((5, 32, 48, 3), 90, np.uint8)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 18, "color_range": 1}
    hdr = encode(tmp_path / "hdr.mp4", frames, pixels="yuv420p10le", tags=tags)
    interlaced = encode(tmp_path / "interlaced.mp4", frames, flags="+ildct+ilme")
    outcomes = run(editor, [item(hdr, "hdr"), item(interlaced, "interlaced")], tmp_path / "out")
    assert outcomes["hdr"].note == "The source is HLG, the result SDR."
    assert outcomes["interlaced"].note == "The source is interlaced, the result progressive."
    info = probe(tmp_path / "out" / "hdr.mp4")
    assert (info.dynamic_range, info.interlaced) == ("SDR", False)


def test_batches_fit_a_budget_of_tokens():
    assert batch_size_for((64, 64, 9), settings()) == 16
    assert batch_size_for((240, 384, 77), settings()) == 1
    assert batch_size_for((240, 384, 77), settings(batch_size=3)) == 3
    assert batch_size_for((256, 256, 13), settings()) == 8
    assert batch_size_for((256, 256, 13), settings(), reference=True) == 7
