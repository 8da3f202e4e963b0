"""Training data behind URLs and in tar shards: the same batches as from local files."""

import shutil
import tarfile

import numpy as np
import pytest

from icve.data.manifest import ManifestError, read_manifest, resolve_path, write_manifest
from icve.data.masks import save_mask
from icve.runtime.storage.remote_path import RemoteError, as_path, forget
from tests.data.test_pairs import data_module, same, take
from tests.s3_server import upload


def pack(folder, packed):
    """The pairs of a folder, their clips in two tar files."""
    for kind in ("sources", "targets"):
        (packed / "shards").mkdir(parents=True, exist_ok=True)
        with tarfile.open(packed / "shards" / f"{kind}.tar", "w") as archive:
            for file in sorted((folder / kind).iterdir()):
                archive.add(file, f"./{file.name}" if kind == "sources" else file.name)
    rows = [
        row | {name: f"shards/{row[name].replace('/', '.tar/')}" for name in ("source_path", "target_path")}
        for row in read_manifest(folder / "manifest.parquet")
    ]
    write_manifest(rows, packed / "manifest.parquet")
    return packed


def test_batches_from_a_bucket_are_those_of_local_files(pairs_folder, s3):
    url = as_path(upload(pairs_folder, "s3://pairs/set"))
    straight = take(data_module(pairs_folder), 6)
    assert same(take(data_module(url), 6), straight)
    # a local manifest may name a remote root
    assert same(take(data_module(pairs_folder, root=str(url)), 6), straight)


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_workers_read_a_bucket_after_their_parent_did(pairs_folder, s3):
    url = as_path(upload(pairs_folder, "s3://pairs/workers"))
    straight = take(data_module(pairs_folder), 8)
    assert same(take(data_module(url, cache_in_memory=False), 2), straight[:2])  # its threads are running now
    assert same(take(data_module(url, num_workers=2), 8), straight)


def test_batches_from_tar_shards_are_those_of_single_files(pairs_folder, tmp_path, s3):
    packed = pack(pairs_folder, tmp_path / "packed")
    straight = take(data_module(pairs_folder), 6)
    assert same(take(data_module(packed), 6), straight)
    assert same(take(data_module(as_path(upload(packed, "s3://pairs/packed"))), 6), straight)


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_other_file_systems_give_the_same_batches(pairs_folder, tmp_path, s3, protocol):
    url = f"{protocol}://{tmp_path.as_posix() if protocol == 'file' else 'pairs'}/set"
    if protocol == "file":
        shutil.copytree(pairs_folder, tmp_path / "set")
    else:
        upload(pairs_folder, url)
    assert same(take(data_module(as_path(url)), 3), take(data_module(pairs_folder), 3))


def test_masks_are_read_where_the_clips_are(pairs_folder, tmp_path, s3):
    folder = tmp_path / "masked"
    shutil.copytree(pairs_folder, folder)
    rows = []
    for number, row in enumerate(read_manifest(folder / "manifest.parquet")):
        mask = np.zeros((12, row["height"], row["width"]), bool)
        mask[:, : 8 + number] = True
        save_mask(folder / "masks" / f"{number}.npz", mask)
        rows.append(row | {"mask_path": f"masks/{number}.npz"})
    write_manifest(rows, folder / "manifest.parquet")
    url = as_path(upload(folder, "s3://pairs/masked"))
    straight = take(data_module(folder), 3)
    assert "mask" in straight[0]
    assert same(take(data_module(url), 3), straight)


def test_a_missing_or_truncated_object_is_replaced_and_told(pairs_folder, tmp_path, s3):
    folder = tmp_path / "broken"
    shutil.copytree(pairs_folder, folder)
    (folder / "sources" / "2.mp4").unlink()
    target = folder / "targets" / "5.mp4"
    target.write_bytes(target.read_bytes()[:-40])
    module = data_module(as_path(upload(folder, "s3://pairs/broken")))
    local = data_module(folder)
    assert same(take(module, 8), take(local, 8))
    assert module.dropped.keys() == local.dropped.keys() == {"edit2", "edit5"}
    assert "No such file" in module.dropped["edit2"]


def test_a_server_that_answers_late_costs_no_sample(pairs_folder, s3):
    url = as_path(upload(pairs_folder, "s3://pairs/late"))
    straight = take(data_module(pairs_folder), 3)
    module = data_module(url, cache_in_memory=False)
    s3.failures += ["503", "503", "cut", "503"]
    assert same(take(module, 3), straight)
    assert not s3.failures
    assert not module.dropped


def test_a_server_that_never_answers_stops_training(pairs_folder, s3):
    module = data_module(as_path(upload(pairs_folder, "s3://pairs/dead")))
    batches = iter(module.train_dataloader())
    s3.failing = "503"
    forget()
    with pytest.raises(RemoteError, match=r"s3://pairs/dead/\w+/\d.mp4 could not be had in 6 attempts"):
        next(batches)
    assert not module.dropped


def test_an_endpoint_that_is_gone_is_one_sentence(pairs_folder, s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "2")
    module = data_module(as_path("s3://nowhere/set"))
    with pytest.raises(RemoteError, match=r"2 attempts.*127.0.0.1:9.*see that its server answers"):
        module.setup()


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_a_worker_tells_of_a_dead_server_in_the_same_sentence(pairs_folder, s3, monkeypatch):
    monkeypatch.setenv("ICVE_REMOTE_ATTEMPTS", "2")
    module = data_module(as_path(upload(pairs_folder, "s3://pairs/worker")), num_workers=1)
    module.setup()
    s3.failing = "503"
    forget()
    with pytest.raises(RemoteError) as caught:
        take(module, 1)
    assert str(caught.value).startswith("s3://pairs/worker/")
    assert "\n" not in str(caught.value)


def test_a_refused_key_is_one_sentence(pairs_folder, s3):
    url = as_path(upload(pairs_folder, "s3://pairs/refused"))
    s3.failing = "403"
    with pytest.raises(RemoteError, match=r"refused to you.*credentials in the environment"):
        data_module(url).setup()


def test_a_missing_bucket_or_manifest_is_one_sentence(s3):
    with pytest.raises(ManifestError, match=r"There is no manifest at s3://absent/manifest.parquet\."):
        data_module(as_path("s3://absent")).setup()


def test_paths_of_rows_stay_below_a_remote_root(pairs_folder, tmp_path):
    root = "s3://bucket/folder"
    assert str(resolve_path(root, "a/b.mp4")) == "s3://bucket/folder/a/b.mp4"
    assert str(resolve_path(root, "s3://bucket/folder/a.mp4")) == "s3://bucket/folder/a.mp4"
    for path in ("../b.mp4", "/b.mp4", "s3://bucket/b.mp4", "s3://bucket/folder/../b.mp4", "http://host/a.mp4"):
        with pytest.raises(ManifestError, match="leaves the manifest's root"):
            resolve_path(root, path)
    with pytest.raises(ManifestError, match="leaves the manifest's root"):
        resolve_path(tmp_path, "s3://bucket/folder/a.mp4")


def test_a_manifest_records_a_remote_root(tmp_path):
    rows = [{"source_path": "a.mp4", "target_path": "b.mp4", "instruction": "x"}]
    write_manifest(rows, tmp_path / "m.parquet", root="s3://bucket/folder")
    assert str(read_manifest(tmp_path / "m.parquet").root) == "s3://bucket/folder"


def test_bad_rows_of_a_remote_manifest_are_told_with_its_url(tmp_path, s3):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "m.jsonl").write_text('{"source_path": "a.mp4", "instruction": "x"}\nnot json\n')
    url = upload(tmp_path / "set", "memory://manifests/set")
    manifest = read_manifest(f"{url}/m.jsonl", partial=True)
    assert str(manifest.root) == url
    assert [record.reason[:37] for record in manifest.rejected] == [f"Line 2 of {url}/m.jsonl"[:37]]


def test_a_folder_of_parts_is_read_from_a_bucket(tmp_path, s3):
    for part in range(2):
        write_manifest(
            [{"source_path": f"{part}.mp4", "target_path": "b.mp4", "instruction": "x"}],
            tmp_path / "set" / "manifest" / f"part-{part}.parquet",
            root=tmp_path / "set",
        )
    url = upload(tmp_path / "set", "s3://pairs/parts")
    manifest = read_manifest(f"{url}/manifest")
    assert [row["source_path"] for row in manifest] == ["0.mp4", "1.mp4"]
    assert str(manifest.root) == url
