"""`icve fit` and `icve encode` on data behind URLs and in tar shards, as a user runs them."""

import tarfile

import pytest

from icve.cli.encode import main as encode
from icve.cli.main import main as icve
from icve.data.manifest import read_manifest, write_manifest
from icve.runtime.storage import remote_path
from tests.cli.test_encode import contents, fit, same
from tests.s3_server import upload
from tests.training import conftest as training

tiny_manifest, tiny_yaml = training.tiny_manifest, training.tiny_yaml  # fixtures


def with_data(manifest):
    return ["--data.init_args.manifest", manifest, "--data.init_args.val_manifest", manifest, "--trainer.max_steps", 4]


@pytest.fixture
def shards(tiny_manifest, tmp_path):
    """The tiny pairs with all clips in one tar file."""
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = list(read_manifest(tiny_manifest))
    names = {row[name] for row in rows for name in ("source_path", "target_path")}
    with tarfile.open(folder / "0.tar", "w") as archive:
        for name in sorted(names):
            archive.add(tiny_manifest.parent / name, name)
    rows = [row | {name: f"0.tar/{row[name]}" for name in ("source_path", "target_path")} for row in rows]
    write_manifest(rows, folder / "manifest.jsonl")
    return folder


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(240)
def test_training_from_a_bucket_and_from_shards_equals_training_from_files(
    s3, tiny_yaml, tiny_manifest, shards, tmp_path
):
    files = fit(tiny_yaml, tmp_path / "files", *with_data(tiny_manifest))
    assert len(files[0]) == 4
    bucket = f"{upload(tiny_manifest.parent, 's3://training/files')}/manifest.jsonl"
    packed = f"{upload(shards, 's3://training/shards')}/manifest.jsonl"
    workers = ["--data.init_args.num_workers", 2]
    for run, manifest, *options in (
        ("bucket", bucket),
        ("bucket2", bucket, *workers),
        ("shards", packed),
        ("shards2", packed, *workers),
        ("local2", shards / "manifest.jsonl", *workers),
    ):
        assert fit(tiny_yaml, tmp_path / run, *with_data(manifest), *options) == files, run


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_latent_cache_in_a_bucket_is_written_and_trained_from(s3, tiny_yaml, tiny_manifest, tmp_path, capsys):
    bucket = f"{upload(tiny_manifest.parent, 's3://latents/files')}/manifest.jsonl"
    remote = ["-c", str(tiny_yaml), "--output", "s3://latents/cache", "--dtype", "float32"]
    assert encode([*remote, *map(str, with_data(bucket)[:4])]) == 0
    assert encode(["-c", str(tiny_yaml), "--output", str(tmp_path / "cache"), "--dtype", "float32"]) == 0
    assert same(contents("s3://latents/cache")[0], contents(tmp_path / "cache")[0])
    capsys.readouterr()
    assert encode([*remote, *map(str, with_data(bucket)[:4])]) == 0  # all is there
    assert '"encoded": 0' in capsys.readouterr().out
    # encoded from files here, used with a manifest there, and the other way round: content is what counts
    straight = fit(tiny_yaml, tmp_path / "files", *with_data(tiny_manifest))
    for run, manifest, cache in (("there", bucket, "s3://latents/cache"), ("mixed", bucket, tmp_path / "cache")):
        latents = ["--data.init_args.latents", cache]
        assert fit(tiny_yaml, tmp_path / run, *with_data(manifest), *latents) == straight, run


def test_pairs_behind_a_url_are_inspected(s3, tiny_manifest, tmp_path, capsys):
    bucket = f"{upload(tiny_manifest.parent, 's3://training/seen')}/manifest.jsonl"
    words = ["inspect-data", bucket, "--buckets", "32x32x5", "--output", str(tmp_path / "seen"), "--count", "2"]
    assert icve(words) == 0
    assert "32x32" in capsys.readouterr().out
    assert (tmp_path / "seen" / "pairs.png").is_file()
    s3.failing = "403"
    remote_path.forget()
    assert icve(words) == 2
    assert "refused to you" in capsys.readouterr().err


def test_a_server_that_never_answers_ends_a_run_with_one_sentence(s3, tiny_yaml, tiny_manifest, tmp_path, capsys):
    bucket = f"{upload(tiny_manifest.parent, 's3://training/dead')}/manifest.jsonl"
    s3.failing = "503"
    remote_path.forget()
    arguments = ["fit", "-c", tiny_yaml, "--trainer.default_root_dir", tmp_path / "run", *with_data(bucket)]
    assert icve(list(map(str, arguments))) == 1
    assert f"{bucket} could not be had in 6 attempts" in capsys.readouterr().err
