import importlib.util
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("fuzz_media", repository / "tools" / "fuzz_media.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ffmpeg():
    if shutil.which("ffmpeg") is None:
        pytest.skip("the ffmpeg command is absent: install it to compare decoding with it")


def test_a_wrong_frame_is_seen(tool, tmp_path, monkeypatch, ffmpeg):
    path = tmp_path / "a.mkv"
    with tool.av.open(str(path), "w", format="matroska") as container:
        stream = tool.add_stream(container, "ffv1", (96, 64), 5)
        for packet in tool.packets_of(stream, tool.pictures((96, 64), 12, 0), None, None):
            container.mux(packet)
    assert tool.compare(path, damaged=False) == ("same", "")
    frames = np.concatenate(list(tool.iterate_frames(path)))
    for wrong in (frames[:-1], frames[[0, 0, *range(2, 12)]]):
        monkeypatch.setattr(tool, "iterate_frames", lambda path, wrong=wrong: [wrong])
        for damaged in (False, True):
            assert tool.compare(path, damaged)[0] == "differ"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generated_files_are_read_as_the_ffmpeg_command_shows_them(repository, ffmpeg):
    command = [sys.executable, repository / "tools" / "fuzz_media.py", "--count", "500", "--processes", "2"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    count, same, refused, *_ = (int(figure) for figure in re.findall(r"\d+", run.stdout.split("| all |")[1])[:3])
    assert count > 400, "most of the files could be made"
    assert same > 0.5 * count
    assert refused < 0.4 * count
