"""An adapter's file or folder: what it holds, in which precision, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from icve.models.adapters.files import check_fits, read_adapter
from icve.models.lora import LORA_FILE
from tests.models.adapters.adapter_cases import (
    ALPHA,
    INF,
    KOHYA,
    NAN,
    TO_Q,
    assert_scales,
    converted,
    dotted,
    flat,
    fused,
    loaded,
    named,
    write,
)
from tests.tiny import tiny_editor


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64"])
@pytest.mark.parametrize("way", [fused, loaded, converted])
def test_tensors_of_every_precision(dtype, way, apply, by_diffusers, matrices, tmp_path):
    dtype = getattr(torch, dtype)
    write(tmp_path / "lora.safetensors", "musubi", matrices, by_diffusers, dtype)
    stored = {name: (a.to(dtype).float(), b.to(dtype).float()) for name, (a, b) in by_diffusers.items()}
    assert_scales(apply(way, tmp_path / "lora.safetensors"), stored, 0.5)


def test_torch_files_and_given_tensors(apply, by_diffusers, matrices, tmp_path):
    state = named(matrices, flat("lora_unet_"), KOHYA, ALPHA)
    torch.save({"state_dict": state}, tmp_path / "lora.pt")
    assert_scales(apply(fused, tmp_path / "lora.pt"), by_diffusers, 0.5)
    assert_scales(apply(loaded, state), by_diffusers, 0.5)
    for beside, name in (
        ({"network_alpha": 8}, "network_alpha"),
        ({"config": {"lora_alpha": 8, "r": 4}}, "lora_alpha"),
    ):
        torch.save({"state_dict": state} | beside, tmp_path / "lora.pt")
        with pytest.raises(ValueError, match=f"keeps '{name}' beside its tensors"):
            read_adapter(tmp_path / "lora.pt")


def test_safetensors_with_the_suffix_of_a_torch_file(apply, by_diffusers, tmp_path):
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "lora.pt")
    assert_scales(apply(fused, tmp_path / "lora.pt"), by_diffusers, 1.0)


DOWN = f"transformer.{TO_Q}.lora_A.weight"
UP = f"transformer.{TO_Q}.lora_B.weight"


def without(key):
    return lambda state: state.pop(key)


def huge(state):
    return {key: torch.full_like(state[key], 1e30) for key in (DOWN, UP)}


def replaced(key, value):
    return lambda state: state.update({key: value(state[key]) if callable(value) else value})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (replaced(DOWN, lambda a: a * NAN), f"{DOWN}' .* has NaN or infinite values"),
        (lambda s: s.update(huge(s)), f"more than numbers can hold .'{DOWN}'"),
        (replaced(UP, lambda b: b.index_fill(1, torch.tensor(0), INF)), f"{UP}' .* has NaN or infinite values"),
        (without(UP), f"{DOWN}' without its lora_B"),
        (without(DOWN), f"{UP}' without its lora_A"),
        (replaced(DOWN, lambda a: a[:2].clone()), r"\(2, 16\) .* no rank in common"),
        (replaced(DOWN, lambda a: a[:, :8].clone()), r"another model: .*\(4, 8\), the layer here has 16 inputs"),
        (replaced(UP, lambda b: b[:8].clone()), r"another model: .*\(8, 4\), the layer here has 16 outputs"),
        (replaced(DOWN, lambda a: a[0].clone()), r"is \(16,\), where a matrix belongs"),
        (replaced(DOWN, torch.zeros(0, 16, 1, 1)), "no rank in common"),
        (replaced(DOWN, torch.zeros(4, 0, 1, 1)), r"another model: .*\(4, 0.*\), the layer here has 16 inputs"),
        (replaced(DOWN, lambda a: a.to(torch.int8)), "is stored as int8, where floating point"),
        (replaced(f"transformer.{TO_Q}.alpha", torch.tensor(NAN)), "alpha' .* no finite number"),
        (replaced(f"transformer.{TO_Q}.alpha", torch.tensor(0.0)), "alpha' .* no finite number other than 0"),
        (replaced("transformer.proj.alpha", torch.tensor(1.0)), "transformer.proj.alpha' without its matrices"),
        (replaced(f"transformer.{TO_Q}.dora_scale", torch.ones(16)), f"is DoRA .*{TO_Q}.dora_scale"),
        (replaced(f"transformer.{TO_Q}.lora_magnitude_vector", torch.ones(16)), "is DoRA"),
        (replaced(f"transformer.{TO_Q}.hada_w1_a", torch.ones(16, 2)), "is LoHa"),
        (replaced(f"transformer.{TO_Q}.lokr_w1", torch.ones(2, 2)), "is LoKr"),
        (replaced(f"transformer.{TO_Q}.lora_B.bias", torch.ones(16)), "is a LoRA with a bias"),
        (replaced(f"transformer.{TO_Q}.diff_b", torch.ones(16)), "stores a weight's whole change"),
        (replaced("transformer.proj_out.weight", torch.ones(2, 2)), "'transformer.proj_out.weight', which is no part"),
        (replaced("network_alpha", torch.tensor(8.0)), "'network_alpha', which may scale it in a way that is not read"),
        (replaced(f"transformer.{TO_Q}.reshape_weight", torch.ones(2)), "reshape_weight', which is no part"),
        (replaced(f"diffusion_model.{TO_Q}.lora_A.weight", torch.ones(4, 16)), "without its lora_B"),
        (replaced(f"transformer.{TO_Q}.lora_down.weight", torch.ones(4, 16)), "two adapters of one layer"),
    ],
)  # fmt: skip
def test_damaged_and_foreign_adapters_are_refused_by_file_and_key(damage, message, apply, by_diffusers, tmp_path):
    state = named(by_diffusers, dotted("transformer."))
    damage(state)
    save_file(state, tmp_path / "bad.safetensors")
    for way in (fused, loaded):
        with pytest.raises(ValueError, match=message) as caught:
            apply(way, tmp_path / "bad.safetensors")
        assert "bad.safetensors'" in str(caught.value)
    with pytest.raises(ValueError, match=message):
        check_fits(read_adapter(state), tiny_editor().transformer, state)


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_files_that_are_no_whole_adapter(by_diffusers, tmp_path, capsys):
    state = named(by_diffusers, dotted("transformer."))
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "a.pt")
    for name in ("a.safetensors", "a.pt"):
        whole = (tmp_path / name).read_bytes()
        for share, message in ((0, "is empty"), (0.5, "is not a whole"), (0.001, "is not a whole")):
            (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=f"{name}' {message}.*copy or download it again"):
                read_adapter(tmp_path / name)
    torch.save(state | {"run": Payload()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt' holds Python objects besides tensors"):
        read_adapter(tmp_path / "a.pt")
    assert "this must not run" not in capsys.readouterr().out
    for value, message in (
        (state[UP].to_sparse(), "a sparse tensor"),
        (state[UP].to("meta"), "a meta tensor"),
        ("text", "stored as str"),
    ):
        torch.save(state | {UP: value}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=f"{UP}' of the adapter .*a.pt' is {message}"):
            read_adapter(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a.pt' holds a list"):
        read_adapter(tmp_path / "a.pt")
    save_file({}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"none.safetensors' holds no LoRA weights of a transformer: it is empty"):
        read_adapter(tmp_path / "none.safetensors")
    tiny_editor().transformer.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"holds no LoRA weights .* is no LoRA weight in a known layout"):
        read_adapter(tmp_path / "model")


def test_the_file_of_a_folder(by_diffusers, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install 'icve[test]'")
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        read_adapter(tmp_path)
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        tiny_editor().load_lora_weights(tmp_path / "absent")
    save_file(named(by_diffusers, dotted("transformer.")), tmp_path / "one.safetensors")
    assert read_adapter(tmp_path).keys() == by_diffusers.keys()
    shutil.copy(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"holds 2 files that may be an adapter: name one, as '.*one.safetensors'"):
        read_adapter(tmp_path)
    shutil.copy(tmp_path / "one.safetensors", tmp_path / LORA_FILE)
    assert read_adapter(tmp_path).keys() == by_diffusers.keys()


def test_a_run_is_its_last_checkpoints_adapter(by_diffusers, tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last"
    last.mkdir(parents=True)
    save_file(named(by_diffusers, dotted("transformer.")), last / LORA_FILE)
    assert read_adapter(tmp_path / "run").keys() == by_diffusers.keys()
