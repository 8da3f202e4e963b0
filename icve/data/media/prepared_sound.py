"""A source's sound on its way to its results: another process makes it ready while the picture is worked on."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import av

from icve.data.media import sound
from icve.data.media.media_paths import media_path
from icve.data.media.video_stream import open_media
from icve.runtime.storage.files import file_state

_LEAST_SECONDS = 120.0  # for making sound ready, in any case; and as much as the sound itself takes
# Processes that begin ahead of time; what comes while so many run begins when it is waited for.
_MOST_AHEAD = max(2, os.cpu_count() or 2)
_running: list[subprocess.Popen] = []


class PreparedSound:
    """The sound of a file from ``begin`` to ``end`` (seconds; None is its end), as an MP4 that is made from now on.

    A context manager: leaving it, or :meth:`close`, ends the process and removes the file. Nothing raises: whatever
    happens to the sound is said in the notes of :meth:`result`.

    Args:
        source: file whose sound is taken.
        path: of the MP4; its folder is created.
        begin: seconds of the source's timeline that become time 0.
        end: seconds of the source's timeline.
        kind: of container that the sound is for, a key of :data:`icve.data.media.sound.KINDS`. None is one without
            sound: it is only seen whether there is any.

    Attributes:
        path: of the MP4.
        is_there: whether the source has sound, as far as can be known.
    """

    def __init__(
        self,
        source: str | os.PathLike,
        path: Path,
        begin: float = 0.0,
        end: float | None = None,
        kind: str | None = "mp4",
    ) -> None:
        self.path, self._range = path, (media_path(source), begin, end, media_path(path), kind or "")
        self.is_there = True
        self._process: subprocess.Popen | None = None
        self._result: tuple[int, list[str]] | None = None
        try:
            with open_media(source) as file:
                if not file.streams.audio:
                    self._result, self.is_there = (0, []), False
                    return
                if kind is None:
                    self._result = 0, []
                    return
                length = max((file.duration or 0) / av.time_base, file_state(source).size / 1e6)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._seconds = _LEAST_SECONDS + length
            _running[:] = [process for process in _running if process.poll() is None]
            if len(_running) < _MOST_AHEAD:
                self._start(decode=True)
        except Exception as error:
            self._result = _left_out(sound.reason(error))

    def __enter__(self) -> PreparedSound:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def result(self) -> tuple[int, list[str]]:
        """Wait for the sound: the number of its tracks, and sentences on what of it could not be kept."""
        if self._result is None:
            try:
                self._result = self._wait()
            except Exception as error:
                self._result = _left_out(sound.reason(error))
        return self._result

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.communicate()
        self.path.unlink(missing_ok=True)

    def _start(self, decode: bool) -> subprocess.Popen:
        self._process = process = sound.start(*self._range, decode=decode, seconds=self._seconds)
        _running.append(process)
        return process

    def _wait(self) -> tuple[int, list[str]]:
        answer, unchecked = self._answer(self._process or self._start(decode=True)), []
        if answer is None:
            answer = self._answer(self._start(decode=False))
            unchecked = ["The sound is copied unchecked: FFmpeg crashes or hangs when it decodes it."]
        if answer is None:
            return _left_out("FFmpeg crashes or hangs when it reads it.")
        return answer["tracks"], [note[0].upper() + note[1:] for note in answer["notes"]] or unchecked

    def _answer(self, process: subprocess.Popen) -> dict | None:
        """What a process prints; None where it crashed or did not come to an end."""
        try:
            printed, _ = process.communicate(timeout=self._seconds)
            return json.loads(printed) if process.returncode == 0 else None
        except (subprocess.TimeoutExpired, ValueError):
            process.kill()
            process.communicate()
            return None


def _left_out(reason: str) -> tuple[int, list[str]]:
    return 0, [f"The sound is left out: {reason}"]
