import json

from icve.data.media import prepared_sound, sound
from icve.data.media.prepared_sound import PreparedSound
from tests.data.media.test_sound import process, tones, with_sound


def test_no_more_processes_begin_ahead_than_are_allowed(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_sound, "_MOST_AHEAD", 2)
    monkeypatch.setattr(prepared_sound, "_running", [])
    sleeps, answers = "import time; time.sleep(100)", f"print({json.dumps({'tracks': 0, 'notes': ['a note.']})!r})"
    codes, begun = [sleeps, sleeps, answers, sleeps], []
    monkeypatch.setattr(sound, "start", lambda *_, **__: begun.append(process(codes[len(begun)])) or begun[-1])
    source = with_sound(tmp_path / "a.mp4", "aac", tones("mono"), "mono")
    waiting = [PreparedSound(source, tmp_path / str(number)) for number in range(3)]
    assert len(begun) == 2
    assert waiting[2].result() == waiting[2].result() == (0, ["A note."])  # begins when it is waited for, once
    assert len(begun) == 3
    for prepared in waiting:
        prepared.close()
    assert all(one.poll() is not None for one in begun)
    with PreparedSound(source, tmp_path / "4"):
        assert len(begun) == 4


def test_a_file_without_sound_needs_no_process(make_clip, tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "start", None)
    with PreparedSound(make_clip("a.mp4"), tmp_path / "sound") as prepared:
        assert prepared.result() == (0, [])
