"""`icve encode`, and training from what it makes, as a user runs them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from icve.cli.encode import main
from icve.cli.main import main as icve
from icve.data import encoding
from icve.data.cache.latents import LatentCache, request_of
from icve.data.manifest import read_manifest, write_manifest
from icve.data.masks import save_mask
from icve.data.paired_edits import PairedEditsDataModule
from icve.models.weightless.hashed import HashedTextEncoder
from icve.runtime.locks import locked
from tests.training import conftest as training
from tests.training.runs import steps

tiny_manifest, tiny_yaml = training.tiny_manifest, training.tiny_yaml  # fixtures
TIME_LIMIT = 120


@pytest.fixture
def encode(tiny_yaml, tmp_path, capsys):
    """Run `icve encode` with the tiny configuration; returns (exit status, summary or None, stderr)."""

    def run(*arguments, output=tmp_path / "cache"):
        status = main(["-c", str(tiny_yaml), "--output", str(output), *map(str, arguments)])
        shown = capsys.readouterr()
        return status, json.loads(shown.out) if shown.out else None, shown.err

    run.output = tmp_path / "cache"
    return run


@pytest.fixture(scope="module")
def made_once(tmp_path_factory, tiny_manifest):
    folder = tmp_path_factory.mktemp("made")
    yaml = folder / "tiny.yaml"
    yaml.write_text(training.TINY_YAML.format(run=folder / "run", manifest=tiny_manifest))
    assert main(["-c", str(yaml), "--output", str(folder / "cache")]) == 0
    return folder / "cache"


@pytest.fixture
def encoded(encode, made_once):
    """`encode`, its output filled with the five pairs in bfloat16."""
    shutil.copytree(made_once, encode.output)
    return encode


@pytest.fixture
def own_data(tiny_manifest, tmp_path):
    """A copy of the pairs that a test may spoil; three of five have edit masks."""
    folder = tmp_path / "own"
    shutil.copytree(tiny_manifest.parent, folder)
    rows = list(read_manifest(folder / "manifest.jsonl"))
    for number, row in enumerate(rows[:3]):
        mask = np.zeros((5, 32, 32), dtype=bool)
        mask[:, 8 * number : 8 * number + 8, :16] = True
        row["mask_path"] = f"mask{number}.npz"
        save_mask(folder / row["mask_path"], mask)
    write_manifest(rows, folder / "manifest.jsonl")
    return folder


def with_data(folder):
    return ["--data.init_args.manifest", folder / "manifest.jsonl", "--data.init_args.val_manifest",
            folder / "manifest.jsonl"]  # fmt: skip


def contents(cache):
    """{(id, role): tensor} of a cache, and its records by id."""
    cache = LatentCache(cache)
    records = {record.id: record for record in cache.records() if record.reason is None}
    tensors = {}
    for name, record in records.items():
        pair = cache.read(record)
        pair |= pair.pop("text").tensors("text")
        tensors |= {(name, role): tensor for role, tensor in pair.items()}
    return tensors, records


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def curves(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"] if "val/" in tag}


def fit(yaml, run, *arguments):
    assert icve(["fit", "-c", str(yaml), "--trainer.default_root_dir", str(run), *map(str, arguments)]) == 0
    return steps(run), curves(run)


def test_the_summary_counts_and_a_second_run_does_nothing(encode):
    status, summary, err = encode()
    assert status == 0
    counts = {name: summary[name] for name in ("rows", "encoded", "reused", "repeated", "rejected")}
    # one manifest trains and validates: its rows are encoded once
    assert counts == {"rows": 5, "encoded": 5, "reused": 0, "repeated": 0, "rejected": 0}
    (shard,) = encode.output.glob("32x32x5/*.safetensors")
    assert summary["bytes"] == shard.stat().st_size
    assert summary["bytes_per_pair"] == round(summary["bytes"] / 5)
    assert "bfloat16" in err
    before = shard.stat().st_mtime_ns
    status, summary, _ = encode()
    assert (status, summary["encoded"], summary["reused"]) == (0, 0, 5)
    assert shard.stat().st_mtime_ns == before


def test_the_cache_may_be_named_in_the_configuration(tiny_yaml, tmp_path, capsys):
    arguments = ["-c", str(tiny_yaml), "--data.init_args.latents", str(tmp_path / "named")]
    assert main(arguments) == 0
    assert len(contents(tmp_path / "named")[1]) == 5
    assert main(["-c", str(tiny_yaml)]) == 2
    assert "--output is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_training_from_a_float32_cache_gives_the_same_losses(encode, tiny_yaml, tmp_path, own_data):
    """With instruction dropout, edit masks on some rows and validation; the weights end up equal, too."""
    data = with_data(own_data)
    status, summary, _ = encode("--dtype", "float32", *data)
    assert (status, summary["encoded"]) == (0, 5)
    options = ["--trainer.max_steps", 8, "--model.objective.init_args.instruction_dropout", 0.5, *data]
    latents = ["--data.init_args.latents", encode.output]
    pixels = fit(tiny_yaml, tmp_path / "pixels", *options)
    cached = fit(tiny_yaml, tmp_path / "cached", *options, *latents)
    assert pixels[0] == cached[0]
    assert len(pixels[1]) == 7  # val/loss, of the five levels, and plain
    assert pixels[1] == cached[1]
    # the comparison sees the mask, and the dropped instructions
    assert (
        fit(tiny_yaml, tmp_path / "even", *options, *latents, "--model.objective.init_args.edit_weight", 1)[0]
        != pixels[0]
    )
    assert (
        fit(
            tiny_yaml, tmp_path / "undropped", *options, *latents, "--model.objective.init_args.instruction_dropout", 0
        )[0]
        != pixels[0]
    )
    weights = "checkpoints/last/transformer/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "pixels" / weights).read_bytes() == (tmp_path / "cached" / weights).read_bytes()


@pytest.mark.slow
def test_a_wan_trains_from_a_cache_of_its_own_latents(encode, tiny_yaml, tmp_path, own_data, tiny_wan):
    """2.2, of 48 channels. A text that was encoded alone is, to rounding, as one of a batch."""
    training.as_wan(tiny_yaml, tiny_wan[1])
    data = with_data(own_data)
    assert encode("--dtype", "float32", *data)[0] == 0
    pixels = fit(tiny_yaml, tmp_path / "pixels", *data)
    cached = fit(tiny_yaml, tmp_path / "cached", *data, "--data.init_args.latents", encode.output)
    for ours, theirs in zip(cached[0], pixels[0], strict=True):
        assert ours["ids"] == theirs["ids"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert cached[1]["val/loss"] == [pytest.approx(point, rel=1e-5) for point in pixels[1]["val/loss"]]


def with_transforms(folder, *transforms):
    """Words that add a configuration with these transforms (name, settings)."""
    listed = [{"class_path": f"icve.data.transforms.{name}", "init_args": settings} for name, settings in transforms]
    (folder / "transforms.json").write_text(json.dumps({"data": {"init_args": {"transforms": listed}}}))
    return ["-c", folder / "transforms.json"]


def test_a_transform_that_is_exact_on_latents_gives_the_same_losses(
    encode, tiny_yaml, tmp_path, own_data, capsys, monkeypatch
):
    keep = with_transforms(tmp_path, ("KeepSource", {"share": 0.4, "instructions": ["change nothing", "keep it"]}))
    data, latents = with_data(own_data), ["--data.init_args.latents", encode.output]
    assert encode("--dtype", "float32", *data)[0] == 0
    assert icve(["fit", "-c", str(tiny_yaml), *map(str, [*keep, *data, *latents])]) == 2
    assert "lacks the instruction 'change nothing' of a transform; add it with: icve encode" in capsys.readouterr().err
    status, summary, _ = encode("--dtype", "float32", *keep, *data)
    assert (status, summary["encoded"], summary["reused"]) == (0, 0, 5)
    encoder, told = "icve.models.weightless.hashed.HashedTextEncoder.encode", []
    encode_texts = HashedTextEncoder.encode
    monkeypatch.setattr(encoder, lambda self, texts: (told.extend(texts), encode_texts(self, texts))[1])
    pixels = fit(tiny_yaml, tmp_path / "pixels", *keep, *data)
    assert {"change nothing", "keep it"} & set(told)
    monkeypatch.setattr(encoder, None)  # what is cached is enough
    assert fit(tiny_yaml, tmp_path / "cached", *keep, *data, *latents) == pixels


def test_a_transform_of_pixels_is_refused(encode, tiny_yaml, tmp_path, capsys):
    noise = with_transforms(tmp_path, ("SourceNoise", {"share": 0.5}))
    status, _, err = encode(*noise)
    assert status == 2
    assert err.startswith("icve encode: SourceNoise changes pixels, and a latent cache has none: take it out of")
    assert len(err.splitlines()) == 1
    assert not encode.output.exists()
    assert encode()[0] == 0
    arguments = ["--data.init_args.latents", encode.output, *noise]
    assert icve(["fit", "-c", str(tiny_yaml), *map(str, arguments)]) == 2
    assert "SourceNoise changes pixels" in capsys.readouterr().err.splitlines()[-1]


def test_random_windows_are_refused(encode, tiny_yaml, capsys):
    words = ["--data.init_args.temporal_crop", "random"]
    status, _, err = encode(*words)
    assert status == 2
    assert err.startswith("icve encode: A latent cache holds one window of every clip")
    assert len(err.splitlines()) == 1
    assert not encode.output.exists()


def test_slow_rows_are_encoded_once_and_caches_that_repeated_them_are_none(encode, tiny_yaml, monkeypatch, capsys):
    words = ["--data.init_args.fps", "24"]
    asked_before = request_of
    monkeypatch.setattr(
        encoding, "request_of", lambda *what: asked_before(*what).replace(', "frames shown": "once"', "")
    )
    status, summary, err = encode(*words)
    assert (status, summary["encoded"]) == (0, 5)
    assert "5 rows are slower than 24 fps, and taken frame by frame" in err
    monkeypatch.undo()
    status, summary, _ = encode(*words)
    assert (status, summary["encoded"], summary["reused"]) == (0, 5, 0)
    assert encode(*words)[1]["reused"] == 5
    status, summary, err = encode(*words, "--data.init_args.slow_clips", "drop")
    assert (status, summary["rejected"]) == (3, 5)
    assert "5 rows are slower than 24 fps, and left out (slow_clips: drop)" in err


def test_training_from_a_bfloat16_cache_is_close(encoded, tiny_yaml, tmp_path):
    pixels, _ = fit(tiny_yaml, tmp_path / "pixels")
    cached, _ = fit(tiny_yaml, tmp_path / "cached", "--data.init_args.latents", encoded.output)
    assert [line["ids"] for line in cached] == [line["ids"] for line in pixels]
    losses = np.array([[line["loss"] for line in lines] for lines in (pixels, cached)])
    assert not np.array_equal(*losses)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.01)


def test_half_the_bytes_on_disk(encode, tmp_path):
    sizes = [encode("--dtype", dtype, output=tmp_path / dtype)[1]["bytes"] for dtype in ("bfloat16", "float32")]
    assert 0.4 < sizes[0] / sizes[1] < 0.8  # headers weigh in tiny shards


@pytest.mark.multiprocess
@pytest.mark.timeout(TIME_LIMIT)
def test_parts_and_workers_give_what_one_process_gives(encode, tmp_path):
    assert encode(output=tmp_path / "whole")[0] == 0
    encoded = [encode("--shard", f"{i}/3", "--workers", i - 1)[1]["encoded"] for i in (1, 2, 3)]
    assert encoded == [2, 2, 1]
    whole, parts = contents(tmp_path / "whole")[0], contents(encode.output)[0]
    assert len(whole) == 5 * 4
    assert same(whole, parts)
    assert encode()[1]["reused"] == 5


@pytest.mark.slow
def test_bad_rows_are_recorded_and_skipped_as_training_does_it(encode, tiny_yaml, tmp_path, own_data):
    (own_data / "target1.mp4").write_bytes(b"no video")
    rows = list(read_manifest(own_data / "manifest.jsonl"))
    rows[4]["instruction"] = ""
    write_manifest(rows, own_data / "manifest.jsonl")
    data = with_data(own_data)
    status, summary, err = encode("--dtype", "float32", *data)
    assert (status, summary["encoded"], summary["rejected"]) == (3, 3, 2)
    assert "Rejected pair4: it has no instruction." in err
    assert "Rejected pair1: " in err
    rejected = [record for record in LatentCache(encode.output).records() if record.reason]
    assert {record.id for record in rejected} == {"pair1", "pair4"}
    # the broken pair is drawn, dropped and replaced in both
    pixels, _ = fit(tiny_yaml, tmp_path / "pixels", *data)
    cached, _ = fit(tiny_yaml, tmp_path / "cached", *data, "--data.init_args.latents", encode.output)
    assert cached == pixels
    # what was mended is encoded, alone
    shutil.copy(own_data / "target0.mp4", own_data / "target1.mp4")
    status, summary, _ = encode("--dtype", "float32", *data)
    assert (status, summary["encoded"], summary["reused"], summary["rejected"]) == (3, 1, 3, 1)


def test_a_changed_file_is_encoded_again_alone(encode, own_data):
    data = with_data(own_data)
    assert encode(*data)[0] == 0
    before, records = contents(encode.output)
    shutil.copy(own_data / "source2.mp4", own_data / "source0.mp4")
    os.utime(own_data / "source3.mp4")  # touched, not changed
    assert encode(*data)[1]["encoded"] == 1
    after = {r.id: r for r in sorted(LatentCache(encode.output).records(), key=lambda r: r.encoded)}
    assert after["pair0"].key != records["pair0"].key
    assert torch.equal(LatentCache(encode.output).read(after["pair0"])["source"], before["pair2", "source"])
    assert {name for name in after if after[name].key != records[name].key} == {"pair0"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--shard", "3/2"], "A shard is i/n"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--dtype", "float32"], "holds bfloat16, not float32"),
        (["--device", "nowhere"], "cannot be put on the device 'nowhere'"),
        (["--data.init_args.batchsize", "3"], "did you mean 'batch_size'?"),
        (["--data.init_args.manifest", "nowhere.jsonl"], "manifest is nowhere.jsonl, which does not exist"),
        (["--data.class_path", "lightning.pytorch.LightningDataModule"], "icve encode"),
        (["--model.frozen.text_encoder.init_args.text_dim", "14"],
         "was made with another encoder: text_dim of its text encoder is 12 and the configuration's is 14"),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(encoded, arguments, told):
    before = sorted(encoded.output.rglob("*"))
    status, summary, err = encoded(*arguments)
    assert (status, summary) == (2, None)
    (line,) = [line for line in err.splitlines() if line.startswith("icve encode: ")]
    assert told in line
    assert sorted(encoded.output.rglob("*")) == before


def test_one_part_is_one_process(encoded):
    fcntl = pytest.importorskip("fcntl")
    with (encoded.output / ".1of1.lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        status, _, err = encoded()
        assert status == 2
        assert "give every process its own --shard" in err
        assert encoded("--shard", "1/2")[0] == 0
    assert encoded()[0] == 0


def test_without_flock_one_part_is_one_process_all_the_same(encoded, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(encoded.output / ".1of1.lock"):
        status, _, err = encoded()
        assert status == 2
        assert "Another process (process" in err
    assert encoded()[0] == 0


@pytest.fixture
def many_pairs(tiny_manifest, tmp_path):
    """200 rows on the five pairs of videos."""
    folder = tmp_path / "many"
    shutil.copytree(tiny_manifest.parent, folder)
    rows = list(read_manifest(folder / "manifest.jsonl"))
    many = [{**rows[n % 5], "id": f"row{n}", "instruction": f"make it {n}"} for n in range(200)]
    write_manifest(many, folder / "manifest.jsonl")
    return folder


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(2 * TIME_LIMIT)
def test_killed_and_started_again(encode, many_pairs, tiny_yaml, tmp_path):
    """SIGKILL: what was on disk is whole and is kept, the rest is encoded; the cache is that of an undisturbed run."""
    data = with_data(many_pairs)
    assert encode(*data, output=tmp_path / "whole")[1]["encoded"] == 200
    whole = contents(tmp_path / "whole")[0]
    command = [sys.executable, "-m", "icve.cli.encode", "-c", tiny_yaml, "--output", encode.output, *data]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + TIME_LIMIT
        while not list(encode.output.glob("32x32x5/*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    leftover = encode.output / "32x32x5" / ".1of1-0123456789abcdef.safetensors.1f.tmp"
    leftover.write_bytes(b"half a shard")  # as a kill in mid-write leaves it
    kept = contents(encode.output)[0]
    done = len({name for name, _ in kept})
    assert done % 64 == 0
    assert 64 <= done < 200
    assert all(torch.equal(whole[name], tensor) for name, tensor in kept.items())
    for shard in encode.output.glob("32x32x5/[!.]*"):
        with safe_open(shard, "pt") as file:
            assert len(file.keys()) == 4 * 64
    status, summary, _ = encode(*data)
    assert (status, summary["reused"], summary["encoded"]) == (0, done, 200 - done)
    assert same(contents(encode.output)[0], whole)
    assert not list(encode.output.rglob("*.tmp"))


@pytest.mark.slow
def test_the_videos_are_not_needed_for_training(encode, tiny_yaml, tmp_path, own_data):
    """Nor to find the buckets: the rows state neither size nor length."""
    data = with_data(own_data)
    assert encode("--dtype", "float32", *data)[0] == 0
    latents = ["--data.init_args.latents", encode.output]
    with_videos, _ = fit(tiny_yaml, tmp_path / "with", *data, *latents)
    for video in own_data.glob("*.mp4"):
        video.unlink()
    without, _ = fit(tiny_yaml, tmp_path / "without", *data, *latents)
    assert without == with_videos


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--model.frozen.codec.init_args.scales", str([2.0] * 16)],
            "was made with another encoder: scales of its codec is",
        ),
        (["--model.frozen.text_encoder.init_args.max_tokens", 3], "max_tokens of its text encoder is 32"),
        (["--data.init_args.fps", 4.0, "--data.init_args.buckets", "[[32, 32, 1]]"], "bucket [32, 32, 5], asked for"),
        (
            ["--data.class_path", "icve.data.unpaired_clips.UnpairedClipsDataModule"],
            "was encoded with reader icve.data.paired_edits",
        ),
        (
            ["--data.init_args.latents", "nowhere"],
            "nowhere, which does not exist: make it with icve encode",
        ),
    ],
)
def test_training_refuses_what_was_made_otherwise(encoded, tiny_yaml, capsys, arguments, told):
    latents = ["--data.init_args.latents", encoded.output]
    assert icve(["fit", "-c", str(tiny_yaml), *map(str, [*latents, *arguments])]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("icve: error: ")]
    assert told in line


def test_a_data_module_of_ones_own_needs_no_cache(tiny_manifest):
    module = PairedEditsDataModule(str(tiny_manifest), [[32, 32, 5]], 2)
    module.setup()
    assert module.latent_cache is None
