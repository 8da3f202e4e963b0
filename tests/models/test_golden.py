"""Parity with the reference tensors (design invariant 1): outputs, and the activations on the way to them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.layout import valid_text_lengths
from icve.models.loading import load_transformer
from icve.models.rope import rotary_frequencies

ATOL = 2e-5


def read(shared_data, name):
    tensors = load_file(shared_data / "golden" / f"{name}.safetensors")
    info = json.loads((shared_data / "golden" / f"{name}.json").read_text())

    def part(prefix):
        return {key[len(prefix) :]: value.clone() for key, value in tensors.items() if key.startswith(prefix)}

    return info, part("state_dict."), part("input."), part("mid."), tensors["output"].clone()


@pytest.fixture(params=["golden_a", "golden_b"])
def golden(request, shared_data, tmp_path):
    info, state, inputs, mid, output = read(shared_data, request.param)
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(info["config"]))
    kwargs = {
        "hidden_states": inputs["noisy_latents"],
        "source_hidden_states": inputs["source_latents"],
        "timestep": inputs["timestep"],
        "encoder_hidden_states": inputs["text_states"],
        "encoder_attention_mask": inputs["text_mask"],
        "pooled_projections": inputs["text_pooled"],
        "guidance": inputs.get("guidance"),
    }
    return load_transformer(tmp_path), kwargs, mid, output


@torch.no_grad()
def test_icve_output_and_activations(golden):
    model, kwargs, mid, output = golden
    lengths = valid_text_lengths(kwargs["encoder_attention_mask"])
    seen = {}

    def keep(name):
        return lambda module, args, result: seen.__setitem__(name, result)

    model.x_embedder.register_forward_hook(lambda m, args, out: seen.setdefault("img_in", []).append(out))
    model.context_embedder.register_forward_hook(keep("txt_in"))
    model.time_text_embed.register_forward_hook(keep("vec"))
    for kind, blocks in ("double", model.transformer_blocks), ("single", model.single_transformer_blocks):
        for i, block in enumerate(blocks):
            block.register_forward_hook(keep(f"{kind}.{i}"))
    got = model(**kwargs)

    def close(name, value, text=False):
        reference = mid[name]
        if text:  # padded positions differ by implementation
            for sample, length in enumerate(lengths):
                torch.testing.assert_close(value[sample, :length], reference[sample, :length], atol=ATOL, rtol=0)
        else:
            torch.testing.assert_close(value, reference, atol=ATOL, rtol=0, msg=lambda m: f"{name}: {m}")

    target, source = seen["img_in"]
    close("img_in_edit", target)
    close("img_in_source", source)
    close("vec", seen["vec"][:, 1])
    close("vec_clean", seen["vec"][:, 0])
    close("txt_in", seen["txt_in"], text=True)
    grid = model.token_grid(kwargs["hidden_states"])
    rope = rotary_frequencies(grid, model.config.rope_axes_dim, model.config.rope_theta)
    close("rope_cos", rope.real.repeat_interleave(2, 1))
    close("rope_sin", rope.imag.repeat_interleave(2, 1))
    for name in (key for key in seen if key.startswith(("double", "single"))):
        visual, text = seen[name]
        n = visual.shape[1] // 2
        close(f"{name}.source", visual[:, :n])
        close(f"{name}.edit", visual[:, n:])
        close(f"{name}.text", text, text=True)
    assert (got - output).abs().max() <= ATOL


@torch.no_grad()
def test_plain_text_to_video_equals_diffusers(shared_data):
    info, state, inputs, _, output = read(shared_data, "golden_t2v_diffusers")
    model = HunyuanVideoInContextTransformer3DModel(**info["config"]).eval()
    model.load_state_dict(state)
    got = model(
        hidden_states=inputs["noisy_latents"],
        timestep=inputs["timestep"],
        encoder_hidden_states=inputs["text_states"],
        encoder_attention_mask=inputs["text_mask"],
        pooled_projections=inputs["text_pooled"],
        guidance=inputs["guidance"],
    )
    assert (got - output).abs().max() <= ATOL
