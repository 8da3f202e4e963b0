import argparse
import shutil

import pytest
import torch
from safetensors.torch import save_file

from icve.editing.editors import resolve_model_folder
from icve.models.adapters.files import read_adapter
from icve.models.checkpoint_files import SafetensorsShard, TorchShard, open_shards, read_tensors, shard_tensors
from icve.models.weight_files import weight_files


def read(path, **options):
    return read_tensors(open_shards(path), lambda tensors: tensors, **options)


@pytest.fixture
def state():
    return {"a.weight": torch.randn(6, 4), "b.bias": torch.randn(5).bfloat16()}


def test_shapes_and_types_are_known_before_a_tensor_is_read(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        held = shard_tensors(open_shards(tmp_path / name))
        assert {k: (v.shape, v.dtype) for k, v in held.items()} == {k: (v.shape, v.dtype) for k, v in state.items()}
        assert {value.device.type for value in held.values()} == {"meta"}


def test_tensors_are_aligned_copies_in_the_asked_type(state, tmp_path):
    save_file(state, tmp_path / "w.safetensors", metadata={"note": "x" * 3})
    got = read(tmp_path)
    assert all(torch.equal(got[key], state[key]) and got[key].dtype == state[key].dtype for key in state)
    assert all(value.data_ptr() % 16 == 0 for value in got.values())
    half = read(tmp_path, dtype=torch.float16)
    assert all(torch.equal(half[key], state[key].half()) for key in state)


def test_counters_beside_the_weights_are_passed_over(state, tmp_path):
    counters = {"global_step": torch.tensor(1000), "steps": torch.tensor([3], dtype=torch.int32)}
    counters |= {"done": torch.tensor(True), "loss": torch.tensor(0.5)}
    save_file(state | counters, tmp_path / "w.safetensors")
    torch.save({"state_dict": state | counters | {"epoch": 3, "name": "x"}, "global_step": 7}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        assert read(tmp_path / name).keys() == state.keys()
    save_file(state | {"a.scale": torch.ones(6, dtype=torch.int8)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"a.scale.* is stored as I8"):
        read(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["w.gguf", "w.safetensors", "w.pt", "folder"])
def test_a_gguf_file_is_named_as_one(tmp_path, name):
    file = tmp_path / name
    if name == "folder":
        file.mkdir()
        file = file / "w.Q4_K_M.GGUF"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises((ValueError, FileNotFoundError), match="is a GGUF file"):
        read(tmp_path / name)
    if name == "folder":
        for reader in (weight_files, read_adapter, resolve_model_folder):
            with pytest.raises(FileNotFoundError, match="is a GGUF file"):
                reader(tmp_path / name)


def test_the_hidden_companions_of_files_from_a_mac_are_no_weights(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    for name in ("._weights.safetensors", "._weights.safetensors.index.json"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    assert read(tmp_path).keys() == {"a"}
    assert weight_files(tmp_path) == [tmp_path / "weights.safetensors"]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("contents", "ema", "expected"),
    [
        (lambda s, e: s, False, 0),
        (lambda s, e: {"module": s, "ema": e, "global_step": 3}, False, 0),
        (lambda s, e: {"module": s, "ema": e, "global_step": 3}, True, 1),
        (lambda s, e: {"ema": e}, False, 1),
        (lambda s, e: {"state_dict": {"model": s}}, False, 0),
        (lambda s, e: {"ema": {"module": e}, "module": s}, True, 1),
    ],
)
def test_torch_files_are_taken_out_of_their_nesting(state, tmp_path, contents, ema, expected, legacy):
    averaged = {key: value * 2 for key, value in state.items()}
    file = tmp_path / "mp_rank_00_model_states.pt"
    torch.save(contents(state, averaged), file, _use_new_zipfile_serialization=not legacy)
    got = read_tensors(open_shards(tmp_path, ema), lambda tensors: tensors)
    wanted = (state, averaged)[expected]
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


def test_a_folder_with_averaged_and_trained_files_gives_the_asked_one(state, tmp_path):
    torch.save(state, tmp_path / "pytorch_model_module.pt")
    torch.save({key: value * 2 for key, value in state.items()}, tmp_path / "pytorch_model_ema.pt")
    assert open_shards(tmp_path)[0].file.name == "pytorch_model_module.pt"
    assert open_shards(tmp_path, ema=True)[0].file.name == "pytorch_model_ema.pt"


def test_of_tencents_folder_the_plain_file_is_read(state, tmp_path):
    for name in ("mp_rank_00_model_states", "mp_rank_00_model_states_fp8", "mp_rank_00_model_states_fp8_map"):
        torch.save({"module": state}, tmp_path / f"{name}.pt")
    assert [shard.file.name for shard in open_shards(tmp_path)] == ["mp_rank_00_model_states.pt"]


def test_bad_files_are_named_in_one_sentence(state, tmp_path):
    def refused(file, match, error=ValueError, **options):
        with pytest.raises(error, match=match) as caught:
            read_tensors(open_shards(file, **options), lambda tensors: tensors)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).endswith(".")

    torch.save(state, tmp_path / "whole.pt")
    for name, content in (
        ("half.pt", (tmp_path / "whole.pt").read_bytes()[:700]),
        ("text.pt", b"not a checkpoint"),
        ("empty.pt", b""),
        ("empty.safetensors", b""),
        ("text.safetensors", b"not a checkpoint"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, f"{name}' is not a whole (torch|safetensors) file .* download it again")
    (tmp_path / "lfs.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(tmp_path / "lfs.safetensors", "pointer of git-lfs.*git lfs pull")
    torch.save({"args": argparse.Namespace(lr=1), "module": state}, tmp_path / "objects.pt")
    refused(tmp_path / "objects.pt", "Python objects besides tensors")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "holds a list")
    refused(tmp_path / "whole.pt", "no averaged weights", ema=True)


def test_values_that_are_no_weights_are_named(state, tmp_path):
    for value, reason in (
        (torch.tensor([1.0, float("nan")]), "'b.bias' of .* has NaN or infinite values"),
        (torch.tensor([1.0, -float("inf")]).bfloat16(), "'b.bias' of .* has NaN or infinite values"),
        (torch.tensor([1, 2]), "'b.bias' of .* is stored as (I64|int64), where weights are floating point"),
        (torch.ones(2).to(torch.float8_e4m3fn), "'b.bias' of .* is stored as (F8_E4M3|float8_e4m3fn)"),
    ):
        save_file(state | {"b.bias": value}, tmp_path / "w.safetensors")
        torch.save(state | {"b.bias": value}, tmp_path / "w.pt")
        for name in ("w.safetensors", "w.pt"):
            with pytest.raises(ValueError, match=reason):
                read(tmp_path / name)
    save_file({"a": torch.tensor([1e5])}, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match=r"'a' of .* is too large for torch\.float16: choose bfloat16"):
        read(tmp_path / "large.safetensors", dtype=torch.float16)


def test_missing_shards_are_named_with_and_without_an_index(state, tmp_path):
    for number in (1, 3):
        save_file(state, tmp_path / f"diffusion_pytorch_model-{number:05d}-of-00003.safetensors")
    with pytest.raises(FileNotFoundError, match=r"lacks the shard diffusion_pytorch_model-00002-of-00003\.safetensors"):
        open_shards(tmp_path)
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a.weight": "gone.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"lacks the shard gone\.safetensors"):
        open_shards(tmp_path)
    index.write_text('{"weight_map": {"a.weight": "../w.safetensors"}}')
    with pytest.raises(ValueError, match="outside"):
        open_shards(tmp_path)
    index.write_text('{"weight_m')
    with pytest.raises(ValueError, match="not a whole index"):
        open_shards(tmp_path)


def test_several_weights_files_without_an_index_are_not_guessed_at(state, tmp_path):
    for name in ("a", "b"):
        save_file(state, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 weights files and no index: name one, as '.*a\.safetensors'"):
        open_shards(tmp_path)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    assert [shard.file.stem for shard in open_shards(tmp_path)] == ["diffusion_pytorch_model"]


def test_deepspeed_folders_are_refused_with_the_command(state, tmp_path):
    step = tmp_path / "zero" / "global_step10"
    step.mkdir(parents=True)
    (tmp_path / "zero" / "latest").write_text("global_step10")
    torch.save({"module": state}, step / "mp_rank_00_model_states.pt")
    torch.save({}, step / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    command = rf"python -m deepspeed\.utils\.zero_to_fp32 {tmp_path}/zero OUTPUT --safe_serialization"
    for path in (tmp_path / "zero", step, step / "mp_rank_00_model_states.pt"):
        with pytest.raises(ValueError, match=command):
            open_shards(path)
    (tmp_path / "zero" / "latest").unlink()
    with pytest.raises(ValueError, match=rf"zero_to_fp32 {tmp_path}/zero --tag global_step10 OUTPUT"):
        open_shards(step)
    # What the command writes may lie beside it.
    save_file(state, step / "model.safetensors")
    assert len(open_shards(step)) == 1
    assert isinstance(open_shards(step)[0], SafetensorsShard)
    # Tencent's own file has the name of DeepSpeed's, but nothing is split there.
    (tmp_path / "transformers").mkdir()
    shutil.copy(step / "mp_rank_00_model_states.pt", tmp_path / "transformers")
    assert isinstance(open_shards(tmp_path / "transformers")[0], TorchShard)
