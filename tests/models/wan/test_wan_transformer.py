"""Wan's transformer: reference tensors, its exact short way with padded text, and frames that come before."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file
from torch import nn

from icve.data.text_condition import TextCondition
from icve.models.counting import Sample, count
from icve.models.denoiser import Denoiser
from icve.models.wan.key_names import to_diffusers
from icve.models.wan.transformer import WanInContextTransformer3DModel, text_rows

ATOL = 2e-5
TINY = {"num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 48, "num_layers": 2, "text_dim": 12}


def golden(shared_data, name):
    folder = shared_data / "golden_wan"
    tensors = {key: value.clone() for key, value in load_file(folder / f"{name}.safetensors").items()}
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    info = json.loads((folder / f"{name}.json").read_text())
    config = info.get("config") or info["config_diffusers"]
    return tensors, state, {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}


def built(config, state, **settings):
    model = WanInContextTransformer3DModel(**config, **settings)
    model.load_state_dict(state)
    return model.eval()


def text_of(tensors):
    states = tensors["input.text_states"]
    mask = torch.arange(states.shape[1]) < tensors["input.text_lengths"][:, None]
    return {"encoder_hidden_states": states, "encoder_attention_mask": mask}


def random_model(seed=0, **settings):
    torch.manual_seed(seed)
    model = WanInContextTransformer3DModel(**TINY, **settings)
    for parameter in model.parameters():  # much of a fresh model is zero, where nothing would differ
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("masked", [True, False])
def test_text_to_video_is_the_reference(shared_data, masked):
    tensors, state, config = golden(shared_data, "golden_wan_t2v")
    model = built(config, state, text_len=tensors["input.text_states"].shape[1])
    text = text_of(tensors)
    if not masked:  # the rows beyond a text are zero in the reference
        text["encoder_attention_mask"] = None
    output = model(tensors["input.noisy_latents"], timestep=tensors["input.timestep"], **text)
    torch.testing.assert_close(output, tensors["output"], atol=ATOL, rtol=1e-4)


@torch.no_grad()
def test_original_names_give_the_original_model(shared_data):
    tensors, state, config = golden(shared_data, "golden_wan_original_names")
    model = built(config, to_diffusers(state), text_len=20)
    output = model(tensors["input.noisy_latents"], timestep=tensors["input.timestep"], **text_of(tensors))
    torch.testing.assert_close(output, tensors["output"], atol=ATOL, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("output", "time", "source"),
    [("output", "zero", True), ("output_source_at_t", "target", True), ("output_t2v", "zero", False)],
)
def test_in_context_is_the_reference(shared_data, output, time, source):
    tensors, state, config = golden(shared_data, "golden_wan_incontext_a")
    model = built(config, state, text_len=16, source_timestep=time)
    latents = tensors["input.source_latents"] if source else None
    found = model(tensors["input.noisy_latents"], latents, timestep=tensors["input.timestep"], **text_of(tensors))
    torch.testing.assert_close(found, tensors[output], atol=ATOL, rtol=1e-4)


def diffusers_twin(model):
    config = {key: value for key, value in model.config.items() if key not in ("text_len", "source_timestep")}
    twin = WanTransformer3DModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def sample(frames=3, channels=16, lengths=(7, 2), size=(4, 6)):
    random = torch.Generator().manual_seed(3)
    text = torch.randn(len(lengths), max(lengths), 12, generator=random)
    return {
        "hidden_states": torch.randn(len(lengths), channels, frames, *size, generator=random),
        "timestep": torch.linspace(30, 900, len(lengths)),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
    }


def all_rows(batch, total=512):
    """Text as diffusers takes it: zero beyond each text, all rows."""
    text = batch["encoder_hidden_states"] * batch["encoder_attention_mask"][..., None]
    return nn.functional.pad(text, (0, 0, 0, total - text.shape[1]))


@torch.no_grad()
@pytest.mark.parametrize("channels", [16, 48])
def test_outputs_are_those_of_diffusers_with_all_rows_of_text(channels):
    model = random_model(in_channels=channels, out_channels=channels)
    batch = sample(channels=channels)
    expected = diffusers_twin(model)(batch["hidden_states"], batch["timestep"], all_rows(batch), return_dict=False)[0]
    torch.testing.assert_close(model(**batch), expected, atol=ATOL, rtol=1e-4)


@torch.no_grad()
def test_frames_before_the_target_are_clean_tokens_at_timestep_zero():
    """Wan 2.2 is given an image so: diffusers takes a timestep per token."""
    model = random_model(in_channels=48, out_channels=48)
    batch = sample(channels=48)
    latents, time = batch.pop("hidden_states"), batch["timestep"]
    tokens = torch.cat([torch.zeros(2, 6), time[:, None].expand(2, 12)], 1)
    expected = diffusers_twin(model)(latents, tokens, all_rows(batch), return_dict=False)[0]
    found = model(latents[:, :, 1:], None, latents[:, :, :1], **batch)
    torch.testing.assert_close(found, expected[:, :, 1:], atol=ATOL, rtol=1e-4)


@torch.no_grad()
def test_sixteen_bits_see_all_rows_of_text():
    rows, layout = text_rows(torch.randn(2, 5, 12).bfloat16(), torch.arange(5) < torch.tensor([[5], [2]]), 32)
    assert rows.shape == (2, 32, 12)
    assert layout.key_bias is None
    assert not rows[1, 2:].any()
    rows, layout = text_rows(torch.randn(2, 5, 12), torch.arange(5) < torch.tensor([[5], [2]]), 32)
    assert rows.shape == (2, 6, 12)
    numbers = layout.key_bias[:, 0, 0].exp()
    assert torch.equal(numbers[:, :5], torch.tensor([[1.0] * 5, [1, 1, 0, 0, 0]]))
    torch.testing.assert_close(numbers[:, 5], torch.tensor([27.0, 30.0]))


def test_a_text_of_full_length_has_no_padding_and_a_longer_one_is_refused():
    rows, layout = text_rows(torch.randn(1, 8, 12), None, 8)
    assert rows.shape[1] == 8
    assert layout.key_bias is None
    with pytest.raises(ValueError, match="A text has 9 tokens, and this model takes 8"):
        text_rows(torch.randn(1, 9, 12), None, 8)


@torch.no_grad()
def test_a_sample_does_not_depend_on_the_texts_beside_it():
    model = random_model()
    batch = sample(lengths=(9, 2, 5))
    whole = model(**batch)
    for n, length in enumerate((9, 2, 5)):
        alone = {key: value[n : n + 1] for key, value in batch.items()}
        alone["encoder_hidden_states"] = alone["encoder_hidden_states"][:, :length]
        alone["encoder_attention_mask"] = None
        torch.testing.assert_close(model(**alone), whole[n : n + 1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_a_number_of_rows_a_text_is_seen_alone_whatever_is_beside_or_behind_it():
    model, batch = random_model(text_len=None), sample(lengths=(7, 2))
    together = model(**batch)
    alone = {name: value[1:] for name, value in batch.items()} | {
        "encoder_hidden_states": batch["encoder_hidden_states"][1:, :2],
        "encoder_attention_mask": None,
    }
    torch.testing.assert_close(model(**alone), together[1:], atol=ATOL, rtol=0)
    assert not torch.allclose(random_model(text_len=7)(**batch)[1:], together[1:], atol=1e-3)


@torch.no_grad()
def test_a_fresh_model_starts_as_the_identity():
    torch.manual_seed(0)
    model = WanInContextTransformer3DModel(**TINY)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(torch.equal(inputs[0], output)))
    assert not model(**sample()).any()
    assert seen == [True, True]


def test_gradients_reach_every_parameter_and_checkpointing_keeps_them():
    model = random_model()
    batch = sample() | {"source_hidden_states": torch.randn(2, 16, 3, 4, 6)}

    def gradients():
        model.zero_grad()
        model(**batch).square().sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    assert all(gradient.any() for gradient in plain.values())
    model.enable_gradient_checkpointing()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("parts", ["source", "reference"])
def test_blocks_compile_without_graph_breaks(parts):
    batch = sample() | {"source_hidden_states": torch.randn(2, 16, 3, 4, 6)}
    if parts == "reference":
        batch |= {"reference_hidden_states": torch.randn(2, 16, 1, 4, 6), "referenced": torch.tensor([True, False])}
    results = []
    for compiled in (False, True):
        model = random_model()
        if compiled:
            for block in model.blocks:
                block.compile(backend="aot_eager", fullgraph=True)
        output = model(**batch)
        output.square().mean().backward()
        results.append([output.detach(), *(parameter.grad for parameter in model.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_denoiser_gives_it_what_it_takes():
    model = random_model()
    batch = sample()
    source = torch.randn(2, 16, 3, 4, 6)
    text = TextCondition(torch.randn(2, 4, 12), torch.ones(2, 4, dtype=torch.bool))
    found = Denoiser(model).denoise(
        {"video": batch["hidden_states"]}, torch.tensor([0.3, 0.9]), text, {"source": source}
    )
    expected = model(
        batch["hidden_states"],
        source,
        timestep=torch.tensor([300.0, 900.0]),
        encoder_hidden_states=text.embeddings,
    )
    torch.testing.assert_close(found["video"], expected, atol=1e-5, rtol=1e-5)


def test_settings_that_no_wan_has_are_refused():
    for setting, match in (
        ({"qk_norm": "layer_norm"}, "qk_norm must be"),
        ({"image_dim": 1280}, r"image-to-video \(I2V\)"),
        ({"source_timestep": "one"}, "source_timestep is"),
    ):
        with pytest.raises(ValueError, match=match):
            WanInContextTransformer3DModel(**TINY, **setting)


def test_every_further_block_is_counted_once():
    small, large = (
        count(WanInContextTransformer3DModel, TINY | {"num_layers": layers}, Sample(3, 4, 6, 9), torch.float32).counts()
        for layers in (2, 5)
    )
    four = count(WanInContextTransformer3DModel, TINY | {"num_layers": 4}, Sample(3, 4, 6, 9), torch.float32).counts()
    assert large.forward - four.forward == (four.forward - small.forward) / 2 > 0


@torch.no_grad()
def test_a_sample_without_a_reference_is_as_one_of_a_batch_without_any():
    model = random_model()
    batch = sample() | {"source_hidden_states": torch.randn(2, 16, 3, 4, 6)}
    picture = torch.randn(2, 16, 1, 4, 6)
    plain, all_have = model(**batch), model(**batch, reference_hidden_states=picture)
    first = model(**batch, reference_hidden_states=picture, referenced=torch.tensor([True, False]))
    torch.testing.assert_close(first, torch.stack([all_have[0], plain[1]]), atol=1e-5, rtol=1e-4)
    assert (all_have - plain).abs().max() > 1e-3


@torch.no_grad()
def test_a_mask_starts_as_no_change_and_then_tells_a_region():
    plain, masked = random_model(), random_model(masks=True)
    assert "masks" not in plain.config
    state = plain.state_dict()
    masked.load_state_dict(state | {"mask_embedder.weight": torch.zeros_like(masked.mask_embedder.weight)})
    batch = sample() | {"source_hidden_states": torch.randn(2, 16, 3, 4, 6)}
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[..., 2:] = 1
    assert torch.equal(masked(**batch, mask=mask), plain(**batch))
    nn.init.normal_(masked.mask_embedder.weight)
    assert torch.equal(masked(**batch), plain(**batch))
    assert not torch.allclose(masked(**batch, mask=mask), plain(**batch))
    with pytest.raises(ValueError, match="takes no mask"):
        plain(**batch, mask=mask)
