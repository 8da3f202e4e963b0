"""Generate video files, whole and damaged, and compare what icve reads with what the ffmpeg command shows.

    python tools/fuzz_media.py --count 500               # two processes, minutes
    python tools/fuzz_media.py --count 10000 --seed 0
    python tools/fuzz_media.py --only 1234 --keep kept  # one file again, and keep it

Seed S is one file: a container, a codec, a layout of streams and times, and a mutation. Outcomes:

- same: as many frames, each with a PSNR of at least 35 dB against ffmpeg's.
- both refuse: icve raises a VideoError, and ffmpeg fails, prints an error or shows nothing.
- stricter: icve refuses and ffmpeg says nothing, for one of the reasons that icve documents: a file shorter than it
  says it is, frames marked as corrupt (ffmpeg says that with -xerror only), a picture whose size changes.
- other version: of a damaged file, icve gives exactly what the FFmpeg that PyAV brings gives (frames or an error), and
  the ffmpeg command, which is of another version, conceals it in another way.
- differ: anything else; the seeds are printed and the status is 1. Also where reading from the middle does not give
  what reading from the start gives, and where a stored index of the file changes what is read or refused.
"""

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.stream import Disposition

from icve.data.media.stored_index import use
from icve.data.media.video import VideoError, iterate_frames, probe, read_frames
from icve.data.media.video_index import forget

os.environ.setdefault("SVT_LOG", "1")  # the encoder of AV1 otherwise writes pages about each file

# Encoders for each container; several names of one are variants: open groups of pictures, no B-frames, gradual refresh.
H264 = ("h264", "h264-open", "h264-plain", "h264-refresh")
CONTAINERS = {
    "mp4": (*H264, "hevc", "mpeg4", "av1", "vp9", "mjpeg"),
    "mov": ("h264", "h264-open", "prores", "mjpeg", "png"),
    "mkv": (*H264, "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2", "mjpeg", "ffv1"),
    "webm": ("vp8", "vp9", "av1"),
    "avi": ("h264", "h264-plain", "mpeg4", "mjpeg", "ffv1", "msmpeg4", "mpeg2"),
    "ts": (*H264, "hevc", "mpeg2"),
    "mpg": ("mpeg1", "mpeg2"),
    "flv": ("h264", "flv"),
    "asf": ("wmv2", "msmpeg4"),
    "gif": ("gif",),
}
COMMON = (3, 2, 3, 2, 2, 4, 2, 1, 1, 1)  # how often each is drawn
FORMATS = {"ts": "mpegts", "mkv": "matroska", "mpg": "mpeg"}
X264 = {"preset": "veryfast", "crf": "18", "threads": "1"}
ENCODERS = {
    "h264": ("libx264", X264 | {"x264-params": "bframes=2:scenecut=0"}),
    "h264-open": ("libx264", X264 | {"x264-params": "bframes=2:scenecut=0:open-gop=1"}),
    "h264-plain": ("libx264", X264 | {"x264-params": "bframes=0:scenecut=0"}),
    "h264-refresh": ("libx264", X264 | {"x264-params": "intra-refresh=1"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1:bframes=2"}),
    "av1": ("libsvtav1", {"preset": "12", "crf": "25", "svtav1-params": "lp=1"}),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "4", "auto-alt-ref": "1", "lag-in-frames": "10", "b": "2M"}),
    "vp9": ("libvpx-vp9", {"deadline": "good", "cpu-used": "5", "auto-alt-ref": "1", "lag-in-frames": "10", "b": "2M"}),
    "mpeg4": ("mpeg4", {"bf": "2", "q": "3", "b": "4M"}),
    "mpeg2": ("mpeg2video", {"bf": "2", "b": "6M"}),
    "mpeg1": ("mpeg1video", {"bf": "2", "b": "6M"}),
    "mjpeg": ("mjpeg", {}),
    "png": ("png", {}),
    "ffv1": ("ffv1", {}),
    "prores": ("prores_ks", {}),
    "msmpeg4": ("msmpeg4v2", {"b": "4M"}),
    "wmv2": ("wmv2", {"b": "4M"}),
    "flv": ("flv", {"b": "4M"}),
    "gif": ("gif", {}),
}
PIXELS = {"mjpeg": "yuvj420p", "png": "rgb24", "prores": "yuv422p10le", "gif": "rgb8"}
SIZES = ((96, 64), (128, 96), (112, 80), (160, 96))
TIMED = {"mp4", "mov", "mkv", "webm", "ts"}  # hold any time
LAYOUTS = ("plain", "late", "variable", "slow", "sound", "cover", "second", "cut copy")
MUTATIONS = ("none", "none", "truncate", "drop", "drop key", "flip", "cut start", "join", "resize")
# Reasons that icve may give where ffmpeg is silent.
STRICTER = ("truncated", "is corrupt", "changes the size", "incomplete")
# What leaves a file whole: there the versions of FFmpeg have to agree.
WHOLE = ("none", "join", "resize")
OUTCOMES = ("same", "both refuse", "stricter", "other version", "differ")
PSNR = 35.0
_BATCH = 250


def pictures(size: tuple[int, int], count: int, seed: int) -> np.ndarray:
    """Frames (F, H, W, 3) of a smooth texture that moves two pixels per frame, around which no chroma is lost."""
    width, height = size
    coarse = np.random.default_rng(seed).integers(30, 220, (height // 16 + 2, (width + 2 * count) // 16 + 2, 3))
    wide = cv2.resize(coarse.astype(np.uint8), (width + 2 * count, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([wide[:, 2 * k : 2 * k + width] for k in range(count)])


def add_stream(container, codec: str, size: tuple[int, int], gop: int) -> av.VideoStream:
    name, options = ENCODERS[codec]
    # Every key frame brings its parameters, so that files can be joined.
    options = {
        key: f"{value}:repeat-headers=1" if key.endswith("-params") and codec != "av1" else value
        for key, value in options.items()
    }
    stream = container.add_stream(name, rate=25)
    stream.width, stream.height, stream.pix_fmt = *size, PIXELS.get(codec, "yuv420p")
    stream.gop_size = gop
    stream.options = options
    stream.codec_context.thread_count = 1
    return stream


def packets_of(stream: av.VideoStream, frames: np.ndarray, times: list[int] | None, base: Fraction) -> list[av.Packet]:
    """Encode frames shown at ``times`` in units of ``base`` (None: at the stream's rate)."""
    if times is not None:
        stream.codec_context.time_base = base
    packets = []
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        if times is not None:
            frame.pts, frame.time_base = times[number], base
        packets += stream.encode(frame)
    return packets + stream.encode()


def hidden(packet: av.Packet) -> av.Packet:
    """A VP8 packet whose frame later ones are predicted from, but that is not shown (RFC 6386, section 9.1)."""
    data = bytearray(packet)
    data[0] &= ~0x10
    copy = av.Packet(bytes(data))
    copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
    copy.is_keyframe, copy.stream = packet.is_keyframe, packet.stream
    return copy


def times_of(layout: str, count: int, rng: random.Random) -> tuple[list[int] | None, Fraction]:
    base = Fraction(1, 1000)
    if layout == "late":
        start = rng.choice((40, 400, 5000))
        return [start + 40 * k for k in range(count)], base
    if layout == "variable":
        return list(np.cumsum([rng.choice((40, 40, 40, 80, 120, 1000)) for _ in range(count)]) - 40), base
    if layout == "slow":
        return list(range(count)), Fraction(rng.choice((60, 2500)))
    return None, base


def write(path: Path, kind: str, codec: str, layout: str, size: tuple[int, int], dropped: str, rng: random.Random):
    """Encode a file; ``dropped`` is the mutation that leaves out packets."""
    count, gop = rng.randrange(12, 36), rng.choice((5, 9, 12, 40))
    frames = pictures(size, count, rng.randrange(2**30))
    times, base = times_of(layout, count, rng)
    with av.open(str(path), "w", format=FORMATS.get(kind, kind)) as container:
        cover = second = sound = None
        if layout == "second" and rng.random() < 0.5:  # before the default one
            second = add_stream(container, codec, (64, 48), gop)
        stream = add_stream(container, codec, size, gop)
        if layout == "second":
            second = second or add_stream(container, codec, (64, 48), gop)
            stream.disposition, second.disposition = Disposition.default, Disposition(0)
        if layout == "cover":
            cover = container.add_stream("png", rate=25)
            cover.width, cover.height, cover.pix_fmt = 320, 240, "rgb24"
            cover.disposition = Disposition.attached_pic
        if layout == "sound":
            sound = container.add_stream("mp2" if kind in ("ts", "mpg", "avi") else "aac", rate=44100)
        packets = packets_of(stream, frames, times, base)
        if codec == "vp8" and rng.random() < 0.5:
            packets = [hidden(packet) if rng.random() < 0.1 else packet for packet in packets]
        if dropped == "drop":
            for _ in range(rng.randrange(1, 4)):
                packets.pop(rng.randrange(len(packets)))
        elif dropped == "drop key":
            keys = [number for number, packet in enumerate(packets) if packet.is_keyframe]
            packets.pop(rng.choice(keys[:1] + keys))
        if cover is not None:
            packets = packets_of(cover, pictures((320, 240), 1, 0), None, base) + packets
        if second is not None:
            others = packets_of(second, pictures((64, 48), count, 1), None, base)
            packets = [packet for pair in zip(packets, others, strict=False) for packet in pair] + packets[
                len(others) :
            ]
        if sound is not None:
            noise = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
            noise.sample_rate = 44100
            packets += [*sound.encode(noise), *sound.encode()]
        for packet in packets:
            container.mux(packet)


def mutate(path: Path, kind: str, codec: str, mutation: str, size: tuple[int, int], rng: random.Random) -> None:
    """Damage a written file, or join another one to it."""
    data = bytearray(path.read_bytes())
    if mutation == "truncate":
        del data[int(len(data) * rng.uniform(0.3, 0.99)) :]
    elif mutation == "flip":
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data) // 5, len(data))] ^= 1 << rng.randrange(8)
    elif mutation == "cut start":
        del data[: int(len(data) * rng.uniform(0.02, 0.6))]
    elif mutation in ("join", "resize"):
        other = path.with_name(f"other.{kind}")
        write(other, kind, codec, "plain", size if mutation == "join" else (64, 48), "", rng)
        if kind in ("ts", "mpg"):
            data += other.read_bytes()
        else:
            joined = path.with_name(f"joined.{kind}")
            join(joined, path, other, FORMATS.get(kind, kind))
            data = joined.read_bytes()
            joined.unlink()
        other.unlink()
    path.write_bytes(data)


def join(path: Path, first: Path, second: Path, kind: str) -> None:
    """The packets of two files in one stream, as recorders of calls write them."""
    with av.open(str(path), "w", format=kind) as container:
        stream, base, end = None, None, 0
        for part in (first, second):
            with av.open(str(part)) as source:
                video = source.streams.video[0]
                stream = stream or container.add_stream_from_template(video)
                base = base or video.time_base
                packets = [packet for packet in source.demux(video) if packet.size]
                times = sorted(packet.pts for packet in packets)
                delay = max(time - packet.pts for time, packet in zip(times, packets, strict=True))
                step = times[1] - times[0]
                for time, packet in zip(times, packets, strict=True):
                    packet.pts, packet.dts = packet.pts - times[0] + end, time - delay - times[0] + end
                    packet.time_base, packet.stream = base, stream
                    container.mux(packet)
                end += times[-1] - times[0] + step


def generate(seed: int, folder: Path) -> tuple[Path, str, str, str]:
    """Write one file; returns it with its container and codec, layout and mutation."""
    rng = random.Random(seed)
    kind = rng.choices(tuple(CONTAINERS), COMMON)[0]
    codec = rng.choice(CONTAINERS[kind])
    layout = rng.choice(LAYOUTS)
    mutation = rng.choice(MUTATIONS)
    if (
        (layout in ("late", "variable", "slow") and kind not in TIMED)
        or (layout == "slow" and kind == "ts")
        or (layout == "cover" and kind not in ("mp4", "mov"))
        or (layout == "second" and kind not in ("mp4", "mov", "mkv", "ts"))
        or (layout == "cut copy" and kind not in ("mp4", "mov", "mkv"))
        or (layout == "sound" and kind in ("webm", "gif", "asf"))
    ):
        layout = "plain"
    if mutation in ("join", "resize"):
        layout = "plain"
        # FFV1's frames do not say their size, and where x264 refreshes gradually the second file begins without a key.
        if kind not in ("ts", "mpg", "mkv", "webm") or codec in ("ffv1", "h264-refresh"):
            mutation = "none"
    if mutation == "cut start" and kind not in ("ts", "mpg"):
        mutation = "drop key"
    size = rng.choice(SIZES)
    path = folder / f"{seed}.{kind}"
    write(path, kind, codec, layout, size, mutation, rng)
    if layout == "cut copy":
        whole = path.rename(path.with_name(f"whole.{kind}"))
        start = ["-ss", f"{rng.uniform(0.1, 0.8):.3f}"]
        subprocess.run(["ffmpeg", "-v", "error", "-y", *start, "-i", whole, "-c", "copy", path], capture_output=True)
        whole.unlink()
    mutate(path, kind, codec, mutation, size, rng)
    return path, f"{kind} {codec}", layout, mutation


def ffmpeg_frames(path: Path, height: int, width: int) -> tuple[np.ndarray, str]:
    """Frames (F, H, W, 3) that the command shows, and what it complains about."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path), "-an"]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    try:
        run = subprocess.run(command, capture_output=True, timeout=60)
    except subprocess.TimeoutExpired:
        return np.empty((0, height, width, 3), np.uint8), "it does not end"
    lines = [line for line in run.stderr.decode(errors="replace").splitlines() if not _harmless(line)]
    frame = 3 * height * width
    shown = np.frombuffer(run.stdout, np.uint8)[: len(run.stdout) // frame * frame].reshape(-1, height, width, 3)
    complaint = "; ".join(lines[:2]) or ("" if len(shown) else "no frame")
    return shown, complaint or (f"status {run.returncode}" if run.returncode else "")


def _harmless(line: str) -> bool:
    """Complaints about writing, not about the file: raw video has no times."""
    return "non monotonically" in line or "Non-monotonous" in line or "deprecated" in line


def xerror(path: Path) -> str:
    """What the command says of corrupt frames, which it shows without a word otherwise."""
    command = ["ffmpeg", "-v", "warning", "-nostdin", "-xerror", "-i", str(path), "-an", "-f", "null", "-"]
    lines = subprocess.run(command, capture_output=True, timeout=60).stderr.decode(errors="replace").splitlines()
    return "; ".join(line for line in lines if "orrupt" in line)


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Of the worst frame, in dB."""
    error = ((ours.astype(np.float32) - theirs) ** 2).reshape(len(ours), -1).mean(1)
    return float(10 * np.log10(255**2 / max(error.max(), 1e-6)))


def straight(path: Path) -> np.ndarray | None:
    """All frames that PyAV's FFmpeg shows of the default stream, None where it fails or marks one as corrupt."""
    try:
        with av.open(str(path)) as container:
            streams = [one for one in container.streams.video if one.codec_context is not None]
            stream = max(streams, key=lambda one: (bool(one.disposition & Disposition.default), one.width))
            stream.thread_count = 1
            shown = False
            frames = []
            for packet in container.demux(stream):
                if not packet.size and packet.buffer_ptr:
                    continue
                try:
                    decoded = packet.decode()
                except av.error.FFmpegError:
                    if shown:
                        return None
                    continue
                for frame in decoded:
                    shown = True
                    if frame.is_corrupt:
                        return None
                    frames.append(frame.to_ndarray(format="rgb24", threads=1))
            return np.stack(frames) if frames else None
    except (av.error.FFmpegError, ValueError):
        return None


def read_all(path: Path) -> tuple[np.ndarray | None, str]:
    """All frames, or why there are none."""
    try:
        return np.concatenate(list(iterate_frames(path))), ""
    except VideoError as error:
        return None, error.reason


def stored_differs(path: Path) -> bool:
    """Whether a process that finds the file in a stored index reads or refuses it differently."""
    forget()
    fresh = read_all(path)
    forget()
    store = use(path.parent, path.parent)
    probe_quietly(path)
    store.write()
    forget()
    use(path.parent, path.parent)
    stored = read_all(path)
    forget()
    return fresh[1] != stored[1] or not np.array_equal(fresh[0], stored[0])


def probe_quietly(path: Path) -> None:
    with contextlib.suppress(VideoError):
        probe(path)


def compare(path: Path, damaged: bool) -> tuple[str, str]:
    """Outcome and, where it is not "same", why."""
    if stored_differs(path):
        return "differ", "a stored index changes what is read"
    reason, ours, size = "", None, (1, 1)
    try:
        info = probe(path)
        size = (info.height, info.width)
        ours = np.concatenate(list(iterate_frames(path)))
    except VideoError as error:
        reason = error.reason
    theirs, complaint = ffmpeg_frames(path, *size)
    if ours is None:
        if complaint or (said := xerror(path)):
            return "both refuse", f"{reason} | {complaint or said}"
        if any(word in reason for word in STRICTER):
            return "stricter", reason
        outcome = "other version" if damaged and straight(path) is None else "differ"
        return outcome, f"refused: {reason} | ffmpeg shows {len(theirs)} frames" if size != (1, 1) else reason
    # Of a damaged stream, what a frame looks like may depend on where decoding began.
    for start in () if damaged else {0, len(ours) // 3, len(ours) - 1}:
        if not np.array_equal(read_frames(path, start=start, count=1)[0], ours[start]):
            return "differ", f"frame {start} read alone is another"
    worst = psnr(ours, theirs) if len(ours) == len(theirs) else 0.0
    if worst >= PSNR:
        return "same", ""
    why = f"{len(ours)} frames, ffmpeg {len(theirs)}, PSNR {worst:.1f} dB | {complaint}"
    # The FFmpeg inside PyAV is compared only here: it is what icve calls, so it cannot judge whole files.
    same = damaged and (shown := straight(path)) is not None and np.array_equal(ours, shown)
    return ("other version" if same else "differ"), why


def one(seed: int, keep: Path | None = None) -> tuple[int, str, str, str, str, str]:
    """(seed, kind, layout, mutation, outcome, why) of one file."""
    av.logging.set_level(None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            path, kind, layout, mutation = generate(seed, Path(folder))
        except (av.error.FFmpegError, OSError, ValueError) as error:  # an encoder or muxer that does not take it
            return seed, "", "", "", "not made", str(error)
        if keep is not None:
            (keep / path.name).write_bytes(path.read_bytes())
        try:
            damaged = mutation not in WHOLE or layout == "cut copy"  # which may begin between key frames
            return seed, kind, layout, mutation, *compare(path, damaged)
        except Exception as error:  # anything but a VideoError is a failure
            return seed, kind, layout, mutation, "differ", f"{type(error).__name__}: {error}"


def fuzz(seeds: range, processes: int) -> list[tuple[int, str, str, str, str, str]]:
    """Outcomes of all seeds, in their order; a file that kills its process is one of them."""
    results = []
    for start in range(0, len(seeds), _BATCH):
        batch = seeds[start : start + _BATCH]
        try:
            with ProcessPoolExecutor(processes) as pool:
                results += list(pool.map(one, batch, chunksize=5))
        except BrokenProcessPool:
            results += [_alone(seed) for seed in batch]
    return results


def _alone(seed: int) -> tuple[int, str, str, str, str, str]:
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(one, seed).result()
    except BrokenProcessPool:
        return seed, "unknown", "unknown", "unknown", "differ", "the process died"


def table(results: list[tuple[int, str, str, str, str, str]]) -> str:
    """Markdown: outcomes per mutation and per container."""
    lines = [f"| files | count | {' | '.join(OUTCOMES)} |", "|---|" + "---:|" * (1 + len(OUTCOMES))]
    for title, column in (("mutation", 3), ("layout", 2), ("container", 1)):
        counts: dict[str, Counter] = defaultdict(Counter)
        for result in results:
            if result[4] != "not made":
                counts[result[column].split()[0] if title == "container" else result[column]][result[4]] += 1
        for name, count in sorted(counts.items()):
            figures = " | ".join(str(count[outcome]) for outcome in OUTCOMES)
            lines.append(f"| {title}: {name} | {count.total()} | {figures} |")
    made = Counter(result[4] for result in results)
    total = sum(made[outcome] for outcome in OUTCOMES)
    lines.append(f"| all | {total} | {' | '.join(str(made[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the first file")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, help="one seed")
    parser.add_argument("--keep", type=Path, help="folder for the file of --only")
    arguments = parser.parse_args()
    if arguments.only is not None:
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
        print(*one(arguments.only, arguments.keep), sep=" | ")
        return 0
    results = fuzz(range(arguments.seed, arguments.seed + arguments.count), arguments.processes)
    print(table(results))
    unmade = sum(result[4] == "not made" for result in results)
    if unmade:
        print(f"{unmade} could not be made: an encoder is missing or does not take what was drawn.")
    wrong = [result for result in results if result[4] == "differ"]
    for result in wrong:
        print(*result, sep=" | ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
