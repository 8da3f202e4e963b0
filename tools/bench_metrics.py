"""Seconds and peak memory of the suite `icve`, against the references' loops one after another.

    OMP_NUM_THREADS=1 python tools/bench_metrics.py
    OMP_NUM_THREADS=1 python tools/bench_metrics.py --videos 1 --frames 1000 --size 480 832 --rounds 1 --ways suite

Synthetic videos are measured with tiny models of random weights, so that what counts is what is done around the
models. *One by one* restates how the papers' code goes: metric after metric, each decodes every video whole (decord,
and OpenCV for flickering and motion, as VBench), prepares its pictures and asks its model frame by frame. *Suite* is
`measure`. Each way runs in a process of its own, in turns; CPU seconds are medians without starting and loading
models, peak memory is that of the process. Both have to give the same figures. The peak before the first video tells
how much of it is Python and torch.
"""

import argparse
import itertools
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

CAPTION = "a red dog runs over the grass"


def write_models(folder: Path) -> None:
    """Tiny models of random weights, by the names of the real ones."""
    import torch
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    torch.manual_seed(0)
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in CLIP's vocabulary
    letters = [chr(byte) for byte in kept] + [chr(256 + n) for n in range(256 - len(kept))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vision = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = vision | {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    settings = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": 224}}
    settings |= {"resample": 3, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "do_rescale": True}
    settings |= {"do_normalize": True, "rescale_factor": 1 / 255, "do_convert_rgb": True}
    settings |= {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
    for name, patch in (("clip-vit-base-patch32", 32), ("PickScore_v1", 28)):
        config = CLIPConfig(text_config=text, vision_config=vision | {"patch_size": patch}, projection_dim=32)
        CLIPModel(config).save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(settings))
        (folder / name / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
        (folder / name / "merges.txt").write_text("#version: 0.2\n")
        special = {"bos_token": words[-2], "eos_token": words[-1], "unk_token": words[-1], "pad_token": words[-1]}
        (folder / name / "tokenizer_config.json").write_text(
            json.dumps(special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
        )
    (folder / "CLIP-ViT-H-14-laion2B-s32B-b79K").symlink_to(folder / "PickScore_v1")
    ViTModel(ViTConfig(**vision, patch_size=16), add_pooling_layer=False).save_pretrained(folder / "dino-vitb16")


def write_videos(folder: Path, videos: int, frames: int, size: tuple[int, int]) -> list[Path]:
    """Pictures that move slowly, and noise."""
    from icve.data.media.video import VideoWriter

    paths = [folder / f"{number:03d}.mp4" for number in range(videos)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        coarse = rng.integers(30, 220, (size[0] // 16 + 1, size[1] // 16 + 1, 3), dtype=np.uint8)
        picture = coarse.repeat(16, 0).repeat(16, 1)[: size[0], : size[1]]
        noise = rng.integers(0, 9, picture.shape, dtype=np.uint8)
        with VideoWriter(path, 16) as writer:
            for frame in range(frames):
                writer.write(np.roll(picture, frame, 1)[None] + np.roll(noise, 7 * frame, 0)[None])
    return paths


def suite(paths: list[Path], models: Path):
    """The figures' means by `measure`, and when measuring began."""
    from icve.evaluation.edits import Edit
    from icve.evaluation.suite import load_suite, measure
    from icve.evaluation.summary import summarise

    metrics = load_suite("icve", [f"models={models}", "device=cpu"]).metrics
    edits = [Edit(path.stem, "", "", path, {"target_caption": CAPTION}, None, {}) for path in paths]
    began = clocks()
    rows = measure(edits, metrics, progress=False)
    errors = [row["error"] for row in rows if row["error"]]
    assert not errors, errors[0]
    return {name: figure["mean"] for name, figure in summarise(rows)["figures"].items()}, began


def one_by_one(paths: list[Path], models: Path):
    """The same, as the references go: metric after metric, video after video, frame after frame."""
    import torch
    from PIL import Image
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, ViTModel

    def loaded(name):
        folder = models / name
        model = CLIPModel.from_pretrained(folder).eval()
        return model, AutoImageProcessor.from_pretrained(folder, backend="pil"), AutoTokenizer.from_pretrained(folder)

    clip, pick = loaded("clip-vit-base-patch32"), loaded("PickScore_v1")
    dino = ViTModel.from_pretrained(models / "dino-vitb16", add_pooling_layer=False).eval()
    normalise = torch.nn.functional.normalize

    def seen(model, pixels):
        return normalise(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)

    def agreement(path, model, processor, tokenizer, scale):
        tokens = tokenizer(CAPTION, return_tensors="pt")
        words = normalise(model.text_projection(model.text_model(**tokens).pooler_output), dim=-1)
        pictures = [Image.fromarray(frame) for frame in decord_frames(path)]
        inputs = [processor(picture, return_tensors="pt").pixel_values for picture in pictures]
        return statistics.fmean((scale * seen(model, pixels) @ words.T).item() for pixels in inputs)

    def consistency(path, mode, crop, statistics_of, features):
        frames = torch.from_numpy(decord_frames(path)).permute(0, 3, 1, 2).float()
        height, width = frames.shape[2:]
        shorter = min(height, width)
        frames = torch.nn.functional.interpolate(
            frames, (224 * height // shorter, 224 * width // shorter), mode=mode, align_corners=False
        )
        if crop:
            top, left = (round((side - 224) / 2) for side in frames.shape[2:])
            frames = frames[:, :, top : top + 224, left : left + 224]
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in statistics_of)
        frames, values, first, last = (frames / 255 - mean) / deviation, [], None, None
        for frame in frames:
            found = features(frame[None])
            if first is None:
                first = found
            else:
                values.append((max(0, (found @ last.T).item()) + max(0, (found @ first.T).item())) / 2)
            last = found
        return statistics.fmean(values)

    def flickering(path):
        frames = [frame.astype(np.float32) for frame in cv2_frames(path)]
        return 1 - statistics.fmean(float(np.abs(a - b).mean()) for a, b in itertools.pairwise(frames)) / 255

    def smoothness(path):
        frames = cv2_frames(path)
        pictures = [torch.from_numpy(frame).permute(2, 0, 1)[None] / 255.0 for frame in frames[::2]]
        middles = [(a + b) / 2 for a, b in itertools.pairwise(pictures)]
        middles = [(middle * 255).clamp(0, 255)[0].permute(1, 2, 0).byte().numpy() for middle in middles]
        errors = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames[1::2], middles, strict=False)]
        return 1 - statistics.fmean(errors) / 255

    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    of_clip = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

    def class_token(pixels):
        return normalise(dino(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0], dim=-1)

    metrics = {
        "clip_score": lambda path: agreement(path, *clip, 1.0),
        "pick_score": lambda path: agreement(path, *pick, pick[0].logit_scale.exp()),
        "subject_consistency": lambda path: consistency(path, "bilinear", False, imagenet, class_token),
        "background_consistency": lambda path: consistency(path, "bicubic", True, of_clip, lambda p: seen(clip[0], p)),
        "motion_smoothness_linear": smoothness,
        "temporal_flickering": flickering,
    }
    began = clocks()
    with torch.inference_mode():
        return {name: statistics.fmean(map(metric, paths)) for name, metric in metrics.items()}, began


def decord_frames(path: Path) -> np.ndarray:
    import decord

    return decord.VideoReader(str(path), num_threads=1)[:].asnumpy()


def cv2_frames(path: Path) -> list[np.ndarray]:
    import cv2

    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    return frames


def clocks() -> tuple[float, float, float]:
    """CPU seconds, seconds, and peak memory in MB."""
    return time.process_time(), time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(way: str, paths: list[Path], models: Path, connection) -> None:
    figures, began = {"suite": suite, "one by one": one_by_one}[way](paths, models)
    ended = clocks()
    connection.send((figures, ended[0] - began[0], ended[1] - began[1], began[2], ended[2]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 832), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="*", default=["one by one", "suite"])
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    found: dict[str, list] = {way: [] for way in args.ways}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        models.mkdir()
        write_models(models)
        paths = write_videos(Path(folder), args.videos, args.frames, args.size)
        for _ in range(args.rounds):
            for way in args.ways:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=run, args=(way, paths, models, theirs))
                process.start()
                theirs.close()
                found[way].append(ours.recv())
                process.join()
    print(f"{args.videos} videos of {args.frames} frames, {args.size[0]} x {args.size[1]}")
    print("| way | CPU s per 100 videos | s per 100 videos | peak MB | before the first video MB |")
    print("|---|---:|---:|---:|---:|")
    for way, results in found.items():
        medians = [statistics.median(values) for values in list(zip(*results, strict=True))[1:]]
        times = [f"{100 * seconds / args.videos:.0f}" for seconds in medians[:2]]
        print(f"| {way} | {times[0]} | {times[1]} | {medians[3]:.0f} | {medians[2]:.0f} |")
    if len(found) == 2:
        first, second = (results[0][0] for results in found.values())
        for name in first:  # the decoders' conversions to RGB differ by a level
            assert abs(first[name] - second[name]) < 0.02 * max(1, abs(first[name])), (name, first[name], second[name])
        ratio = statistics.median(a[1] for a in found["one by one"]) / statistics.median(a[1] for a in found["suite"])
        print(f"{ratio:.1f} times fewer CPU seconds")


if __name__ == "__main__":
    main()
