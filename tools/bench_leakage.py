"""How many copies `icve eval leakage` finds, how many clean clips it takes for copies, and what a large set costs.

    python tools/bench_leakage.py --videos clips/ more/clips/ --clips 3000 --copied 100 --output runs/leakage
    python tools/bench_leakage.py --clips 300 --copied 20 --output runs/leakage --train_clips 1000000

Training clips are the given videos and those of `icve synthesize` (64 x 64, 9 frames); each of some of them is copied
in every way of `COPIES` and written as H.264. As many synthetic clips of other scenes are clean. Recall and false
positives stand with 95 % intervals. `--train_clips` measures looking up test clips among so many clips of ten frames
each, of random hashes, in CPU seconds, beside comparing every frame with every frame.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from icve.data.media.video import probe, read_frames, write_video
from icve.evaluation.intervals import wilson_interval
from icve.evaluation.leakage.check import EVERY_TEST, EVERY_TRAIN
from icve.evaluation.leakage.clips import Clip, Fingerprint, find_clips, fingerprint, sample
from icve.evaluation.leakage.frame_hashes import hash_frames
from icve.evaluation.leakage.hashing import Hashes, join
from icve.evaluation.leakage.matching import FRAME_BITS, find_matches
from icve.synthetic.paired_clips import make_pair

Copy = Callable[[np.ndarray, float], tuple[np.ndarray, float, int]]  # frames, rate -> frames, rate, H.264's crf
_LARGEST = 416  # pixels of a real clip's longer side in its copies


def scaled(frames: np.ndarray, factor: float) -> np.ndarray:
    size = [max(32, round(side * factor / 2) * 2) for side in frames.shape[2:0:-1]]
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def cropped(frames: np.ndarray, top: float, bottom: float, left: float, right: float) -> np.ndarray:
    height, width = frames.shape[1:3]
    rows = slice(round(top * height), height - round(bottom * height))
    columns = slice(round(left * width), width - round(right * width))
    return np.stack([cv2.resize(frame[rows, columns], (width, height)) for frame in frames])


def barred(frames: np.ndarray, share: float) -> np.ndarray:
    height, width = frames.shape[1:3]
    bar = round(share * height)
    result = np.zeros_like(frames)
    for frame, out in zip(frames, result, strict=True):
        out[bar : height - bar] = cv2.resize(frame, (width, height - 2 * bar), interpolation=cv2.INTER_AREA)
    return result


def coloured(frames: np.ndarray) -> np.ndarray:
    """Gamma 0.85, a twentieth brighter, a fifth less saturated, a little warmer."""
    colours = (frames.astype(np.float32) / 255) ** 0.85 * 1.05
    grey = colours.mean(-1, keepdims=True)
    colours = (grey + 0.8 * (colours - grey)) * np.array([1.03, 1.0, 0.96], np.float32)
    return (np.clip(colours, 0, 1) * 255).round().astype(np.uint8)


def trimmed(frames: np.ndarray, begin: float, end: float) -> np.ndarray:
    return frames[round(begin * len(frames)) : len(frames) - round(end * len(frames))]


def slower(frames: np.ndarray, ratio: float) -> np.ndarray:
    """The frames nearest to a rate ``ratio`` times as high."""
    return frames[np.unique(np.round(np.arange(0, len(frames) - 0.5, 1 / ratio)).astype(int))]


COPIES: dict[str, Copy] = {
    "re-encoded, crf 35": lambda f, rate: (f, rate, 35),
    "half the size": lambda f, rate: (scaled(f, 0.5), rate, 24),
    "bars of 12 %": lambda f, rate: (barred(f, 0.12), rate, 24),
    "3 % cropped on every side": lambda f, rate: (cropped(f, 0.03, 0.03, 0.03, 0.03), rate, 24),
    "5 % cropped at the top and left": lambda f, rate: (cropped(f, 0.05, 0, 0.05, 0), rate, 24),
    "first 20 % and last 30 % cut off": lambda f, rate: (trimmed(f, 0.2, 0.3), rate, 24),
    "5/8 of the rate": lambda f, rate: (slower(f, 5 / 8), rate * 5 / 8, 24),
    "colours changed": lambda f, rate: (coloured(f), rate, 24),
    "all at once, milder": lambda f, rate: (
        scaled(coloured(cropped(trimmed(f, 0.1, 0.15), 0.02, 0.01, 0.01, 0.02)), 0.6),
        rate,
        28,
    ),
}


def of_frames(frames: np.ndarray, rate: float, every: float) -> Fingerprint:
    """The fingerprint of a clip that is in no file."""
    seconds = np.arange(len(frames)) / rate
    chosen, step = sample(seconds, every)
    # Not `fingerprint`: thousands of clean clips need no files.
    resized = np.stack([cv2.resize(frames[n], (128, 128), interpolation=cv2.INTER_CUBIC) for n in chosen])
    words, usable = hash_frames(resized)
    return Fingerprint(words[usable], seconds[chosen][usable].astype(np.float32), step)


@dataclass(frozen=True)
class Figures:
    """``counts``: (found, of how many); ``at_least``: copies and clean clips that match, by least score."""

    counts: dict[str, tuple[int, int]]
    at_least: dict[float, tuple[int, int]]


def share(successes: int, trials: int) -> str:
    low, high = wilson_interval(successes, trials)
    return f"{100 * successes / trials:.2f} % ({100 * low:.2f} to {100 * high:.2f}), {successes} of {trials}"


def synthetic(split: str, count: int) -> list[np.ndarray]:
    return [make_pair(split, 77, index, with_distractors=False).source for index in range(count)]


def measure(videos: list[str], clips: int, copied: int, output: Path) -> Figures:
    """Recall by the way of copying, for real and synthetic clips, and false positives."""
    real = [clip for folder in videos for clip in find_clips(folder).clips]
    made = synthetic("train", clips)
    names = [*real, *(Clip(Path(f"synthetic/{number}")) for number in range(clips))]
    prints = [fingerprint(clip, EVERY_TRAIN) for clip in real] + [of_frames(f, 8.0, EVERY_TRAIN) for f in made]
    train = join(names, prints)
    tests: dict[Clip, tuple[str, Clip]] = {}
    for kind, chosen in (("real", real), ("synthetic", names[len(real) :][:copied])):
        for number, clip in enumerate(chosen):
            if kind == "real":
                frames, rate = read_frames(clip.file), probe(clip.file).fps
                frames = scaled(frames, min(1.0, _LARGEST / max(frames.shape[1:3])))
            else:
                frames, rate = made[number], 8.0
            for way, copy in COPIES.items():
                changed, new_rate, crf = copy(frames, rate)
                file = output / f"{kind}-{number}-{list(COPIES).index(way)}.mp4"
                if not file.exists():
                    write_video(file, changed, new_rate, crf=crf)
                tests[Clip(file)] = (f"{kind}, {way}", clip)
    clean = [Clip(Path(f"clean/{number}")) for number in range(clips)]
    test_prints = [fingerprint(clip, EVERY_TEST) for clip in tests]
    test_prints += [of_frames(frames, 8.0, EVERY_TEST) for frames in synthetic("test", clips)]
    matches = find_matches(train, join([*tests, *clean], test_prints))
    found = {(match.test, match.train) for match in matches}
    counts: dict[str, tuple[int, int]] = {}
    for way in dict.fromkeys(way for way, _ in tests.values()):
        trials = [(clip, original) for clip, (of, original) in tests.items() if of == way]
        counts[way] = sum(trial in found for trial in trials), len(trials)
    hits = sum((clip, original) in found for clip, (_, original) in tests.items())
    counts["all copies"] = hits, len(tests)
    wrong = {match.test for match in matches if match.test not in tests}
    counts["clean clips taken for copies"] = len(wrong), clips
    pairs = sum(match.test not in tests for match in matches)
    counts["pairs of clean and training clips taken for copies"] = pairs, clips * len(names)
    best = {match.test: match.score for match in reversed(matches)}
    at_least = {
        score: (
            sum(best[c] >= score for c in best if c in tests),
            sum(best[c] >= score for c in best if c not in tests),
        )
        for score in np.arange(0.6, 0.9, 0.05).round(2).tolist()
    }
    return Figures(counts, at_least)


def measure_scale(train_clips: int, test_clips: int = 100, frames: int = 10) -> dict[str, object]:
    """CPU seconds of finding test clips among random ones, all of them copies with a tenth of their bits changed."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**64, (train_clips * frames, 2), np.uint64)
    times = np.tile(np.arange(frames, dtype=np.float32) / 2, train_clips)
    first = np.arange(train_clips + 1) * frames
    train = Hashes([Clip(Path(str(n))) for n in range(train_clips)], words, times, first, np.full(train_clips, 0.5))
    chosen = rng.choice(train_clips, test_clips, replace=False)
    flips = np.packbits(rng.random((test_clips, frames, 2, 64)) < 0.1, axis=-1).view(np.uint64)[..., 0]
    copies = [
        Fingerprint(train.of(n).words ^ flip, train.of(n).times, 0.5) for n, flip in zip(chosen, flips, strict=True)
    ]
    test = join([Clip(Path(f"test/{n}")) for n in chosen], copies)
    began = time.process_time()
    matches = find_matches(train, test)
    seconds = time.process_time() - began
    right = {(str(match.test.file), str(match.train.file)) for match in matches}
    began = time.process_time()
    for word in copies[0].words:
        np.flatnonzero(np.bitwise_count(words ^ word).sum(-1) <= FRAME_BITS)
    plain = (time.process_time() - began) * test_clips
    return {
        "training clips": train_clips,
        "test clips": test_clips,
        "found": sum((f"test/{n}", str(n)) in right for n in chosen),
        "others found": len(right) - sum((f"test/{n}", str(n)) in right for n in chosen),
        "CPU seconds": round(seconds, 2),
        "CPU seconds of comparing all frames": round(plain, 2),
        "ratio": round(plain / seconds, 1),
        "peak memory, MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="*", default=[], help="folders of real videos")
    parser.add_argument("--clips", type=int, default=3000, help="synthetic training clips, and clean clips")
    parser.add_argument("--copied", type=int, default=100, help="synthetic clips that are copied in every way")
    parser.add_argument("--output", type=Path, required=True, help="folder for the copies")
    parser.add_argument("--train_clips", type=int, help="measure the search among so many training clips too")
    arguments = parser.parse_args()
    figures = measure(arguments.videos, arguments.clips, arguments.copied, arguments.output)
    shares = {way: share(*trials) for way, trials in figures.counts.items()}
    print(json.dumps(shares, indent=2, ensure_ascii=False))
    for score, (copies, clean) in figures.at_least.items():
        print(f"score of at least {score}: {copies} copies, {clean} clean clips", flush=True)
    if arguments.train_clips:
        print(json.dumps(measure_scale(arguments.train_clips), indent=2))


if __name__ == "__main__":
    main()
