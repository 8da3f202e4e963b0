"""Adapters that are named by a path, or by a repository on the Hub."""

import shutil

import pytest
from diffusers.utils import hub_utils
from huggingface_hub import errors

from icve.models.adapters.downloads import local_adapter
from icve.models.adapters.files import read_adapter
from icve.models.lora import LORA_FILE
from tests.models.adapters.adapter_cases import assert_scales, fused, peft_folder, write
from tests.tiny import tiny_editor


@pytest.mark.parametrize("name", ["someone/no-such-adapter", "folder/absent.safetensors", "/nowhere/a/b"])
def test_adapters_that_are_nowhere(name, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    with pytest.raises(FileNotFoundError, match=f"There is no adapter at {name}"):
        tiny_editor().load_lora_weights(name, local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(TypeError, match="no argument 'wieght_name'"):
        tiny_editor().load_lora_weights(name, wieght_name="x")


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (errors.LocalEntryNotFoundError, {}, "the Hub cannot be reached or was not asked, and its cache does not hold"),
        (errors.EntryNotFoundError, {}, "its repository on the Hub has no adapter of a usual name: give weight_name"),
        (errors.EntryNotFoundError, {"weight_name": "a.bin"}, "its repository on the Hub has no file a.bin"),
        (errors.RevisionNotFoundError, {}, "its repository on the Hub has no such revision"),
        (errors.GatedRepoError, {}, "the Hub has no such repository, or one that needs your consent and token"),
        (
            errors.RepositoryNotFoundError,
            {},
            "the Hub has no such repository, or one that needs your consent and token",
        ),
        (errors.HfHubHTTPError, {}, "the Hub fails"),
    ],
)
def test_the_reason_why_a_repository_gives_no_adapter(kind, arguments, message, monkeypatch):
    def download(*_, **__):
        error = kind.__new__(kind)  # some of them want a response
        raise error

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    with pytest.raises(FileNotFoundError, match=rf"^There is no adapter at a/b: .* here, and {message}.*\.$"):
        local_adapter("a/b", **arguments)


@pytest.mark.parametrize("configured", [True, False])
def test_a_repositorys_settings_are_downloaded_with_its_weights(configured, apply, by_diffusers, tmp_path, monkeypatch):
    folder = peft_folder(tmp_path / "cache", by_diffusers)
    if not configured:
        (folder / "adapter_config.json").unlink()

    def download(repository, filename, **_):
        if not (folder / filename).exists():
            raise errors.EntryNotFoundError
        return str(folder / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    file = local_adapter("a/b")
    assert file == folder / "adapter_model.safetensors"
    if configured:
        assert_scales(apply(fused, file), by_diffusers, 1.5)
    else:
        with pytest.raises(ValueError, match="PEFT's names"):
            read_adapter(file)


def test_fastvideos_settings_are_downloaded_too(apply, matrices, by_diffusers, tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    (tmp_path / "cache").mkdir()
    write(tmp_path / "hub" / LORA_FILE, "diffusers", matrices, by_diffusers)
    (tmp_path / "hub" / "lora_config.json").write_text('{"lora_params": {"lora_rank": 4, "lora_alpha": 2}}')

    def download(repository, filename, **_):
        return shutil.copy(tmp_path / "hub" / filename, tmp_path / "cache" / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", download)
    assert_scales(apply(fused, local_adapter("a/b")), by_diffusers, 0.5)

    def cached(repository, filename, **_):
        if filename != LORA_FILE:
            raise errors.LocalEntryNotFoundError("offline")
        return str(tmp_path / "cache" / filename)

    monkeypatch.setattr(hub_utils, "hf_hub_download", cached)
    assert local_adapter("a/b") == tmp_path / "cache" / LORA_FILE
