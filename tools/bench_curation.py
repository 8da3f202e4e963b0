"""Time finding scenes and motion in raw videos against the plain composition, in the same run; or measure memory.

    python tools/bench_curation.py VIDEOS                    # a folder of videos, or files
    python tools/bench_curation.py VIDEOS --rounds 3 --frames 200
    python tools/bench_curation.py VIDEOS --memory --minutes 60

`plain` is what one would write first: PySceneDetect's adaptive (or content) detector with its defaults, as its command
line runs it, then Farneback's optical flow between all full-resolution frames. `staged` is this package's Probe →
Measure → Segments → Motion. Both run in one thread, alternating, file by file; the median over rounds counts. Where a
file `cuts.json` lies beside the videos (`videos: [{file, transitions: [{type, start, end}]}]`), F1 of the boundaries is
given too: a hard cut must be met within one frame, a gradual transition within its interval.

`--memory` loops the first of the videos, scaled to 1080p, into a long file without encoding it again, and measures it
in a process of its own, whose largest resident size it prints.
"""

import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from scenedetect import AdaptiveDetector, ContentDetector, detect

from icve.curation.measure import Measure
from icve.curation.motion import Motion
from icve.curation.probe import Probe
from icve.curation.segments import Segments
from icve.curation.stage import Rejected, Row, Workspace
from icve.data.media.video import VideoWriter, iterate_frames, probe

SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi"}
DETECTORS = {"adaptive": AdaptiveDetector, "content": ContentDetector}
_LOOPED = 240  # frames of the piece that `--memory` repeats


def plain(path: Path, detector: str, frames: int | None) -> list[float]:
    """Boundaries by PySceneDetect and, for the time it takes, the motion of every frame."""
    scenes = detect(str(path), DETECTORS[detector](), end_time=frames)
    capture, before, speeds = cv2.VideoCapture(str(path)), None, []
    while len(speeds) + 1 < (frames or sys.maxsize):
        read, frame = capture.read()
        if not read:
            break
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        if before is not None:
            flow = cv2.calcOpticalFlowFarneback(before, grey, None, 0.5, 3, 15, 3, 5, 1.2, 0)
            speeds.append(float(np.median(np.linalg.norm(flow, axis=-1))))
        before = grey
    capture.release()
    return [float(scene[0].frame_num) for scene in scenes[1:]]


def staged(path: Path) -> list[float]:
    """Boundaries by the stages: a hard cut's frame, the middle of what a gradual transition takes."""
    with tempfile.TemporaryDirectory() as output:
        work = Workspace(path.parent, Path(output), path.parent)
        rows: list[Row] = [{"key": "video", "video": path.name}]
        for stage in (Probe(min_side=1, min_seconds=0), Measure(), Segments()):
            (outcome,) = stage(rows, work)
            if isinstance(outcome, Rejected):
                return []
            rows = outcome if isinstance(outcome, list) else [outcome]
        for row in rows:
            Motion()([row], work)
    ends, starts = [row["scene_end"] for row in rows[:-1]], [row["scene_start"] for row in rows[1:]]
    return [(end + start) / 2 for end, start in zip(ends, starts, strict=True)]


def score(found: Iterable[float], transitions: list[dict[str, Any]], hard_only: bool) -> tuple[int, int, int]:
    """Boundaries matched one to one, found and true; with ``hard_only``, those of gradual transitions count nowhere."""
    left, matched, true = sorted(found), 0, 0
    for transition in transitions:
        hard = transition["start"] == transition["end"]
        low, high = (
            (transition["start"] - 1, transition["end"] + 1) if hard else (transition["start"], transition["end"])
        )
        hits = [cut for cut in left if low <= cut <= high]
        for hit in hits[: None if hard_only and not hard else 1]:
            left.remove(hit)
        true += hard or not hard_only
        matched += bool(hits) and (hard or not hard_only)
    return matched, matched + len(left), true


def f1(counts: list[tuple[int, int, int]]) -> float:
    matched, found, true = (sum(column) for column in zip(*counts, strict=True))
    return 2 * matched / max(1, found + true)


def shorten(path: Path, frames: int, folder: Path) -> Path:
    """The first frames of a video as a file of its own."""
    info, short = probe(path), folder / path.name
    with VideoWriter(short, info.fps) as writer:
        for chunk in iterate_frames(path, 0, min(frames, info.frames)):
            writer.write(chunk)
    return short


def loop(piece: Path, minutes: float, target: Path) -> Path:
    """A long video that repeats a short one: its packets, copied."""
    with av.open(str(piece)) as source, av.open(str(target), "w") as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        times, kept = [(packet.pts, packet.dts) for packet in packets], [bytes(packet) for packet in packets]
        keys, base = [packet.is_keyframe for packet in packets], stream.time_base
        period = int(stream.duration)
        for turn in range(max(1, round(minutes * 60 / float(period * base)))):
            for (pts, dts), content, key in zip(times, kept, keys, strict=True):
                packet = av.Packet(content)
                packet.pts, packet.dts, packet.time_base = pts + turn * period, dts + turn * period, base
                packet.is_keyframe, packet.stream = key, copy
                sink.mux(packet)
    return target


def peak_memory() -> float:
    """Largest resident size of this process so far, in MiB (Linux); `getrusage` would count its parent's too."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def measure_memory(path: Path, output: Path, answer: Any) -> None:
    """Probe and measure a video; answers with its frames, the seconds and the peaks in MiB after
    imports and at the end."""
    before = peak_memory()
    began = time.perf_counter()
    row: Row = {"key": "long", "video": path.name}
    for stage in (Probe(), Measure()):
        (row,) = stage([row], Workspace(path.parent, output, path.parent))
    if isinstance(row, Rejected):
        raise SystemExit(f"{path} was rejected: {row.reason} ({row.detail}).")
    seconds = time.perf_counter() - began
    answer.send((row["frames"], seconds, before, peak_memory()))


def report_memory(video: Path, minutes: float) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        piece, size = folder / "piece.mp4", (1080, 1920)
        info = probe(video)
        with VideoWriter(piece, info.fps) as writer:
            for chunk in iterate_frames(video, 0, min(_LOOPED, info.frames), size=size):
                writer.write(chunk)
        path = loop(piece, minutes, folder / "long.mp4")
        context = multiprocessing.get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=measure_memory, args=(path, folder, send))
        process.start()
        send.close()
        frames, seconds, before, peak = receive.recv()
        process.join()
        sizes = [file.stat().st_size / 1e6 for file in (path, folder / "signals" / "long.npz")]
        print("| minutes | frames | file, MB | signals, MB | ms/frame | imports, MiB | peak, MiB |")
        print("|---|---|---|---|---|---|---|")
        figures = f"{sizes[0]:.0f} | {sizes[1]:.1f} | {1000 * seconds / frames:.1f}"
        print(f"| {frames / info.fps / 60:.1f} | {frames} | {figures} | {before:.0f} | {peak:.0f} |")


def report_speed(files: list[Path], detector: str, rounds: int, frames: int | None) -> None:
    truth = {}
    for file in files:
        beside = file.parent / "cuts.json"
        if beside.is_file() and frames is None:
            truth |= {v["file"]: v["transitions"] for v in json.loads(beside.read_text())["videos"]}
    counts: dict[str, list] = {f"{way} {kind}": [] for way in ("plain", "staged") for kind in ("hard", "all")}
    totals = {"plain": 0.0, "staged": 0.0}
    print("| video | frames | plain, ms/frame | staged, ms/frame | plain / staged |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for file in files:
            path = file if frames is None else shorten(file, frames, Path(scratch))
            seconds: dict[str, list[float]] = {"plain": [], "staged": []}
            for _ in range(rounds):
                found = {}
                for way in seconds:
                    began = time.perf_counter()
                    found[way] = plain(path, detector, frames) if way == "plain" else staged(path)
                    seconds[way].append(time.perf_counter() - began)
            median = {way: statistics.median(times) for way, times in seconds.items()}
            number = probe(path).frames
            each = {way: 1000 * median[way] / number for way in median}
            print(
                f"| {file.name} | {number} | {each['plain']:.1f} | {each['staged']:.2f} "
                f"| {each['plain'] / each['staged']:.1f} |",
                flush=True,
            )
            for way in totals:
                totals[way] += median[way]
                if file.name in truth:
                    counts[f"{way} hard"].append(score(found[way], truth[file.name], hard_only=True))
                    counts[f"{way} all"].append(score(found[way], truth[file.name], hard_only=False))
    print(f"| all | | | | {totals['plain'] / totals['staged']:.1f} |")
    if truth:
        print("\n| F1 | plain | staged |\n|---|---|---|")
        for kind, words in (("hard", "hard cuts, ±1 frame"), ("all", "all transitions")):
            print(f"| {words} | {f1(counts[f'plain {kind}']):.3f} | {f1(counts[f'staged {kind}']):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("--detector", choices=DETECTORS, default="adaptive", help="of the plain composition")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--frames", type=int, help="of each video at most; F1 is only given for whole files")
    parser.add_argument("--memory", action="store_true", help="measure memory on a long file instead of time")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of that file")
    arguments = parser.parse_args()
    files = []
    for path in arguments.videos:
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        files += found
    if not files:
        parser.error(f"there is no video in {', '.join(map(str, arguments.videos))}")
    cv2.setNumThreads(1)
    if arguments.memory:
        report_memory(files[0], arguments.minutes)
    else:
        report_speed(files, arguments.detector, arguments.rounds, arguments.frames)


if __name__ == "__main__":
    main()
