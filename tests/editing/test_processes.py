"""`icve edit` and EditPipeline in several processes give what one gives, and end together."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from diffusers import FirstBlockCacheConfig, MagCacheConfig

from icve.cli import edit
from icve.data.media.png_frames import iterate_png_frames
from icve.data.media.video import read_frames
from icve.editing.batch import edit_items
from icve.editing.estimate import seconds_per_batch
from icve.editing.items import Item
from icve.editing.jobs import Settings, plan
from icve.editing.processes import LostProcess, Processes
from icve.models.sequence_parallel import set_sequence_parallel
from icve.runtime.together import FailedTogether, together
from tests.tiny import tiny_editor

SIZES = {"a": (5, (32, 32)), "b": (14, (47, 81)), "c": (9, (46, 34)), "d": (1, (64, 32)), "e": (7, (32, 32))}


@pytest.fixture
def folder(make_clip, tmp_path) -> Path:
    """A model of two heads, and a folder of clips of odd sizes and lengths with a broken file among them."""
    (tmp_path / "clips").mkdir()
    for seed, (name, (frames, size)) in enumerate(SIZES.items()):
        make_clip(f"clips/{name}.mp4", frames, size, seed=seed)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"text")
    tiny_editor(heads=2, guidance_scale=3.0).save_pretrained(tmp_path / "model")
    return tmp_path


def options(folder: Path, output: str, *more: str) -> list[str]:
    places = ["--model", folder / "model", "--input", folder / "clips", "--output", folder / output]
    return [
        str(word) for word in [*places, "--instruction", "make it red", "--batch-size", 2, "--precision", 32, *more]
    ]


@pytest.fixture
def in_two_processes():
    """Starts `icve edit` under `torchrun`; what a test leaves running is ended."""
    launched = []
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "-m",
        "icve.cli.edit",
    ]

    def start(*arguments: str) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        launched.append(subprocess.Popen([*command, *arguments, "--device", "cpu"], env=environment, **pipes))
        return launched[-1]

    yield start
    for process in launched:
        if process.poll() is None:
            process.terminate()  # it ends the two
            process.communicate()


def pictures(folder: Path) -> np.ndarray:
    return np.stack(list(iterate_png_frames(folder))).astype(int)


def check_results(folder: Path, expected: str, found: str) -> None:
    lines = [json.loads(line) for line in (folder / found / "results.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted([*SIZES, "broken"])
    for line in lines:
        assert line["status"] == ("failed" if line["id"] == "broken" else "ok")
    for name in SIZES:
        one, other = (read_frames(folder / made / f"{name}.mp4").astype(int) for made in (expected, found))
        assert np.abs(one - other).max() <= 4  # one level before H.264
        assert np.abs(one - other).mean() < 0.02
    assert not list((folder / found).glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_a_shared_run_that_lost_a_process_is_completed_and_equals_one_process(folder, in_two_processes, capsys):
    steps = ("--steps", "20")
    assert edit.main(options(folder, "one", *steps)) == 3
    log, process = folder / "two" / "results.jsonl", in_two_processes(*options(folder, "two", *steps))
    while not (log.exists() and '"ok"' in log.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    follower = next(worker for worker in workers if worker.environ().get("RANK") == "1")
    follower.kill()
    summary, _ = process.communicate()
    assert process.returncode != 0
    assert summary == ""
    recorded = log.read_text().count('"ok"')
    assert recorded < len(SIZES)

    process = in_two_processes(*options(folder, "two", *steps))
    summary, errors = process.communicate()
    assert process.returncode != 0  # an item failed
    assert "exitcode  : 3" in errors
    assert errors.count("failed: broken: ") == 1
    counts = json.loads(summary)
    assert (counts["edited"], counts["failed"], counts["kept"]) == (len(SIZES) - recorded, 1, recorded)
    check_results(folder, "one", "two")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(150)
def test_two_groups_of_one_divide_the_items(folder, in_two_processes, capsys):
    assert edit.main(options(folder, "one")) == 3
    process = in_two_processes(*options(folder, "two", "--sequence_parallel_size", "1", "--report", "3"))
    summary, errors = process.communicate()
    assert errors.count("Traceback (most recent call last)") == 1  # torchrun's own
    counts = json.loads(summary)
    assert (counts["edited"], counts["failed"], counts["kept"]) == (len(SIZES), 1, 0)
    assert (folder / "two" / "report.html").read_text().count("<article") == 3
    check_results(folder, "one", "two")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(300)
def test_wan_edits_in_two_processes_as_in_one(make_clip, tiny_wan, tmp_path, in_two_processes, capsys):
    """2.1 and 2.2, also in windows; both processes share tokens."""
    (tmp_path / "clips").mkdir()
    names = ("b", "e")
    for name in names:
        make_clip(f"clips/{name}.mp4", *SIZES[name])

    def words(weights: Path, output: str, *more: str) -> list[str]:
        places = ["--transformer", weights / "transformer", "--base", weights, "--input", tmp_path / "clips"]
        sampling = ["--steps", 2, "--guidance", 3, "--window", 5, "--pixels", 32 * 64, "--batch-size", 2]
        rest = ["--instruction", "make it red", "--precision", 32, "--format", "png", *more]
        return [str(word) for word in (*places, *sampling, *rest, "--output", tmp_path / output)]

    for number, weights in enumerate(tiny_wan):
        process = in_two_processes(*words(weights, f"two{number}"))
        _, errors = process.communicate(timeout=140)
        assert process.returncode == 0, errors[-3000:]
        assert edit.main([*words(weights, f"one{number}"), "--device", "cpu"]) == 0
        for name in names:
            one, two = (pictures(tmp_path / f"{made}{number}" / f"{name}.frames") for made in ("one", "two"))
            assert np.abs(one - two).max() <= 1
    alone = words(tiny_wan[1], "alone", "--input", str(tmp_path / "clips" / "b.mp4"), "--device", "cpu")
    assert edit.main(alone) == 0
    assert np.abs(pictures(tmp_path / "one1" / "b.frames") - pictures(tmp_path / "alone" / "b.frames")).max() <= 1


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("mine"), "icve edit: mine\n"), (FailedTogether({0: "ours"}), "")]
)
def test_what_hinders_one_process_alone_is_said_by_it(error, said, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr("icve.editing.processes.joined", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(edit, "_run", fail)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert edit.main(["--input", "a.mp4", "--output", "out", "--instruction", "x"]) == 2
    assert capsys.readouterr().err == said


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(150)
def test_editors_end_with_their_launcher(folder, in_two_processes):
    process = in_two_processes(*options(folder, "two", "--steps", "2000"))
    while len(workers := psutil.Process(process.pid).children()) < 2:
        time.sleep(0.05)
    while not (folder / "two").exists():  # they have met
        time.sleep(0.05)
    process.kill()
    _, living = psutil.wait_procs(workers, timeout=60)
    assert not living


def pair_of_processes(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    pipeline = tiny_editor(heads=2, steps=6, guidance_scale=3.0)
    video = torch.randint(0, 256, (2, 3, 9, 48, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def latents(generator=0) -> torch.Tensor:
        drawn = [torch.Generator().manual_seed(generator + i) for i in range(2)] if generator is not None else None
        instructions = ["make it red", "remove the large dog"]
        return pipeline(video, instructions, generator=drawn, output_type="latent").video

    def compare(message: str) -> None:
        set_sequence_parallel(None)
        expected = latents()
        set_sequence_parallel(dist.group.WORLD)
        torch.testing.assert_close(latents(), expected, atol=1e-5, rtol=0, msg=message)

    compare("plain")
    pipeline.transformer.enable_cache(
        MagCacheConfig(threshold=1e6, num_inference_steps=6, mag_ratios=[1.0] * 6, retention_ratio=0.2)
    )
    compare("with a step cache")
    pipeline.transformer.disable_cache()
    torch.manual_seed(rank)
    drawn = latents(None)
    both = [torch.empty_like(drawn) for _ in range(2)]
    dist.all_gather(both, drawn)
    assert torch.equal(*both), "noise of each process's own"
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ValueError, match="FirstBlockCacheConfig cannot be used where 2 processes share tokens"):
        latents()
    pipeline.transformer.disable_cache()

    processes = Processes(rank, 2, 2, "cpu", dist.group.WORLD, dist.group.WORLD)
    with pytest.raises(FailedTogether, match=r"^process 1: I say no$"):
        together(lambda: int("1") if rank == 0 else only_one_says_no())
    sampling = {"num_inference_steps": 2, "guidance_scale": 2.0, "guidance_until": 0.0}
    settings = Settings(sampling | {"shift": 5.0, "negative_prompt": ""}, window=5, budget=32 * 32, batch_size=2)
    items = [Item(n, n, Path(folder, "a.mp4"), "a.mp4", f"do {n}", 0) for n in ("1", "2")]
    if rank == 0:
        with processes.leading(pipeline):
            assert seconds_per_batch(pipeline, (32, 32, 5), 2, settings.sampling) > 0
        # The other process fails in the middle of a batch; this one must neither wait for it nor try halves.
        outcomes = edit_items(pipeline, plan(items, settings)[0], settings, lambda item: Path(folder, f"{item.id}.mp4"))
        lost = pytest.raises(LostProcess, match=r"Process 0 of 2 cannot go on: .* The same command")
        with lost, processes.leading(pipeline):
            list(outcomes)
        assert not Path(folder, "1.mp4").exists()
    else:
        processes.follow(pipeline)
        pipeline.transformer.single_transformer_blocks[0].register_forward_pre_hook(out_of_memory)
        with pytest.raises(LostProcess, match=r"Process 1 of 2 cannot go on: CUDA out of memory\. Those"):
            processes.follow(pipeline)


def only_one_says_no() -> None:
    raise ValueError("I say no")


def out_of_memory(*_) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(150)
def test_a_pipeline_in_two_processes(make_clip, tmp_path):
    make_clip("a.mp4")
    torch.multiprocessing.spawn(pair_of_processes, args=(str(tmp_path),), nprocs=2)


@pytest.mark.parametrize(
    ("environment", "given", "message"),
    [
        ({}, ["--sequence_parallel_size", "2"], "start them with torchrun --nproc_per_node 2 -m icve edit"),
        ({"WORLD_SIZE": "3"}, ["--sequence-parallel-size", "2"], "3 processes cannot be grouped by 2"),
        ({"WORLD_SIZE": "2"}, ["--device", "cuda:1"], "would be that of all 2 processes: leave the number out"),
        ({"WORLD_SIZE": "999"}, ["--device", "cuda"], "999 processes need 999 devices 'cuda'"),
        ({}, ["--sequence_parallel_size", "0"], "--sequence-parallel-size must be at least 1"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_does_not_fit_is_said_by_one_process_of_a_machine(environment, given, message, rank, monkeypatch, capsys):
    for name, value in ({"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment).items():
        monkeypatch.setenv(name, value)
    assert edit.main(["--input", "a.mp4", "--output", "out", "--instruction", "x", *given]) == 2
    said = capsys.readouterr().err
    assert (message in said and said.count("\n") == 1) if rank == 0 else said == ""


def test_heads_must_be_shared_evenly(tmp_path):
    six = tiny_editor(heads=6)
    Processes(world=6, size=3).check(six)
    with pytest.raises(ValueError, match=r"6 attention heads cannot be shared by 4 processes.*here 1 or 2 or 3 or 6\."):
        Processes(world=12, size=4).check(six)
