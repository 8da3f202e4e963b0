import importlib.util

import pytest
import torch
from safetensors.torch import load_file

from icve.editing.editors import load_editor


@pytest.fixture(scope="module")
def tool(repository):
    spec = importlib.util.spec_from_file_location("export_editor", repository / "tools" / "export_editor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_are_stored_small_and_load_as_before(tool, tiny_model, tmp_path):
    size = tool.export(tiny_model, tmp_path / "model", torch.bfloat16)
    (weights,) = (tmp_path / "model" / "transformer").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}
    assert size < 0.6 * sum(file.stat().st_size for file in tiny_model.rglob("*.safetensors"))
    before, after = load_editor(tiny_model, "cpu"), load_editor(tmp_path / "model", "cpu")
    for one, two in zip(before.transformer.parameters(), after.transformer.parameters(), strict=True):
        assert two.dtype == torch.float32
        assert torch.allclose(one, two, rtol=1e-2)
    assert after.config.defaults == before.config.defaults
    tool.export(tiny_model, tmp_path / "other", torch.bfloat16, steps=7, shift=None)
    assert load_editor(tmp_path / "other", "cpu").config.defaults == before.config.defaults | {"steps": 7}
    with pytest.raises(FileExistsError, match="not empty"):
        tool.export(tiny_model, tmp_path / "model", torch.bfloat16)
