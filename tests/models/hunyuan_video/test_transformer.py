import pytest
import torch
from diffusers import FirstBlockCacheConfig, HunyuanVideoTransformer3DModel

from icve.models import attention, layout
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from tests.models.conftest import batch, randomised


def test_parameters_are_those_of_diffusers(config):
    ours = HunyuanVideoInContextTransformer3DModel(**config).state_dict()
    peer = HunyuanVideoTransformer3DModel(**config).state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in peer.items()}


def test_a_fresh_model_predicts_zero(config):
    assert HunyuanVideoInContextTransformer3DModel(**config)(**batch()).abs().max() == 0


@torch.no_grad()
def test_padding_never_reaches_a_real_token(model):
    inputs = batch()
    expected = model(**inputs)
    text = inputs["encoder_hidden_states"].clone()
    text[1, 3:] = 1e4
    wider = torch.cat([text, torch.full((2, 5, 12), -7.0)], dim=1)
    mask = torch.cat([inputs["encoder_attention_mask"], torch.zeros(2, 5, dtype=torch.bool)], dim=1)
    got = model(**inputs | {"encoder_hidden_states": wider, "encoder_attention_mask": mask})
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_padding_gets_no_gradient(model):
    inputs = batch()
    text = inputs["encoder_hidden_states"].requires_grad_()
    model(**inputs).square().sum().backward()
    assert text.grad[1, 3:].abs().max() == 0
    assert text.grad[1, :3].abs().min() > 0


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(model):
    inputs = batch()
    together = model(**inputs)
    for i in range(2):
        alone = model(**{key: value[i : i + 1] for key, value in inputs.items()})
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-5, rtol=0)


@torch.no_grad()
def test_attending_sample_by_sample_equals_the_key_bias(model, monkeypatch):
    expected = model(**batch())
    monkeypatch.setattr(attention, "attends_by_sample", lambda query: True)
    torch.testing.assert_close(model(**batch()), expected, atol=1e-5, rtol=0)


def test_no_mask_is_built_when_all_texts_are_equally_long(model, monkeypatch):
    biases = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(*args, attn_mask=None, **kwargs):
        biases.append(attn_mask)
        return plain(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    model(**batch(lengths=(5, 5)))
    assert biases == [None] * len(biases)
    assert len(biases) == 4
    model(**batch(lengths=(5, 4)))
    assert all(bias.shape[1:3] == (1, 1) for bias in biases[4:])  # broadcast over heads and queries


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("lengths", [(7, 3), (5, 5), (7, 7)])
def test_text_padded_as_on_an_accelerator_gives_the_same(model, monkeypatch, by_sample, lengths):
    results = []
    for step in (1, 64):
        monkeypatch.setattr(layout, "text_tokens", lambda longest, _, step=step: -(-longest // step) * step)
        monkeypatch.setattr(attention, "attends_by_sample", lambda key, step=step: by_sample and step == 64)
        model.zero_grad()
        out = model(**batch(lengths=lengths))
        out.square().mean().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_source_is_modulated_at_timestep_zero(model):
    inputs = batch()
    clean = inputs | {"timestep": torch.zeros(2)}
    vectors = []
    model.time_text_embed.register_forward_hook(lambda m, args, out: vectors.append(out))
    model(**inputs)
    model(**clean)
    (source, noised), (_, zero) = (found.unbind(1) for found in vectors)
    torch.testing.assert_close(source, zero)
    assert (noised - source).abs().max() > 1e-3


@torch.no_grad()
def test_source_and_target_may_have_different_sizes(model):
    assert model(**batch(source=(1, 4, 4), target=(3, 6, 4))).shape == (2, 16, 3, 6, 4)


@torch.no_grad()
def test_everything_given_matters(model):
    inputs = batch()
    expected = model(**inputs)
    for name in ("source_hidden_states", "encoder_hidden_states", "pooled_projections", "timestep"):
        assert (model(**inputs | {name: inputs[name] * 0.5}) - expected).abs().max() > 1e-4, name


def test_activation_checkpointing_changes_nothing(model):
    inputs = batch()
    grads = []
    for enabled in (False, True):
        model.zero_grad()
        if enabled:
            model.train()
            model.enable_gradient_checkpointing()
        out = model(**inputs)
        out.square().mean().backward()
        grads.append([out.detach()] + [p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_first_block_cache_wraps_the_blocks(model):
    """Threshold 0 computes every block; a high one reuses the residual of the blocks after the first."""
    inputs = batch()
    expected = model(**inputs)
    calls = []
    model.single_transformer_blocks[-1].proj_out.register_forward_hook(lambda *args: calls.append(1))
    for threshold, computed in ((0.0, 2), (1e6, 1)):
        calls.clear()
        model.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        with model.cache_context("edit"):
            first = model(**inputs)
            second = model(**inputs | {"hidden_states": inputs["hidden_states"] * 1.01})
        torch.testing.assert_close(first, expected)
        assert len(calls) == computed
        assert (second - expected).abs().max() > 0
        model.disable_cache()


@pytest.mark.parametrize("referenced", [None, (True, False)])
@pytest.mark.parametrize("block", ["transformer_blocks", "single_transformer_blocks"])
def test_blocks_compile_without_graph_breaks(model, block, referenced):
    inputs = batch()
    if referenced is not None:
        reference = inputs["source_hidden_states"][:, :, :1]
        inputs |= {"reference_hidden_states": reference, "referenced": torch.tensor(referenced)}
    expected = model(**inputs)
    for module in getattr(model, block):
        module.compile(backend="aot_eager", fullgraph=True)
    got = model(**inputs)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_inductor_gives_the_same_output_and_gradients(config, tmp_path, monkeypatch):
    # Of its own: what was compiled for other instructions, on a shared disk or in an imitation, is wrong or crashes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = randomised(HunyuanVideoInContextTransformer3DModel(**config))
        if compiled:
            for module in (*model.transformer_blocks, *model.single_transformer_blocks):
                module.compile(fullgraph=True)
        out = model(**batch())
        out.square().mean().backward()
        results.append([out.detach()] + [p.grad for p in model.parameters()])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_bfloat16_stays_close_to_float32(model):
    inputs = batch()
    expected = model(**inputs)
    half = {k: v.bfloat16() if v.is_floating_point() and k != "timestep" else v for k, v in inputs.items()}
    got = model.bfloat16()(**half).float()
    assert (got - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder_attention_mask": torch.tensor([[1] * 7, [0] * 7])}, "Sample 1 of the batch has no valid text token"),
        ({"encoder_attention_mask": torch.tensor([[1] * 7, [0] + [1] * 6])}, "right-padded"),
        ({"hidden_states": torch.zeros(2, 16, 2, 5, 6)}, "cannot be cut into patches"),
        ({"guidance": torch.ones(2)}, "no guidance embedding"),
    ],
)
def test_wrong_inputs_are_named(model, change, message):
    with pytest.raises(ValueError, match=message):
        model(**batch() | change)


def test_wrong_configurations_are_named(config):
    with pytest.raises(ValueError, match="rope_axes_dim"):
        HunyuanVideoInContextTransformer3DModel(**config | {"rope_axes_dim": (4, 4, 4)})
    with pytest.raises(ValueError, match="qk_norm"):
        HunyuanVideoInContextTransformer3DModel(**config | {"qk_norm": "layer_norm"})


def conditioned(config):
    """A model that takes masks, whose other weights are random and whose mask embedding is as it begins."""
    model = randomised(HunyuanVideoInContextTransformer3DModel(**config, masks=True))
    torch.nn.init.zeros_(model.mask_embedder.proj.weight)
    return model


@torch.no_grad()
def test_a_new_mask_embedding_changes_nothing_and_a_trained_one_does(config):
    model, inputs = conditioned(config), batch()
    plain = HunyuanVideoInContextTransformer3DModel(**config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k not in model.zero_at_first})
    mask = torch.zeros_like(inputs["source_hidden_states"][:, :1])
    mask[..., 0, 0] = 1
    expected = plain(**inputs)
    assert torch.equal(model(**inputs, mask=mask), expected)
    torch.nn.init.ones_(model.mask_embedder.proj.weight)
    assert not torch.equal(model(**inputs, mask=mask), expected)
    # None, and one of zeros, still say nothing.
    assert torch.equal(model(**inputs), expected)
    assert torch.equal(model(**inputs, mask=torch.zeros_like(mask)), expected)
    with pytest.raises(ValueError, match="takes no mask"):
        plain(**inputs, mask=mask)


def test_the_configuration_without_masks_is_diffusers(config):
    assert "masks" not in HunyuanVideoInContextTransformer3DModel(**config).config
    assert HunyuanVideoInContextTransformer3DModel(**config, masks=True).config.masks


@torch.no_grad()
@pytest.mark.parametrize("rule", ["full", "static_context"])
@pytest.mark.parametrize("by_sample", [False, True])
def test_a_sample_without_a_reference_is_as_in_a_batch_without(model, rule, by_sample, monkeypatch):
    if by_sample:
        monkeypatch.setattr(attention, "attends_by_sample", lambda key: True)
    model.rule = rule
    inputs = batch()
    reference = torch.randn(inputs["source_hidden_states"][:, :, :1].shape, generator=torch.Generator().manual_seed(3))
    without, having = model(**inputs), model(**inputs, reference_hidden_states=reference)
    mixed = model(**inputs, reference_hidden_states=reference, referenced=torch.tensor([False, True]))
    torch.testing.assert_close(mixed[0], without[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed[1], having[1], atol=1e-5, rtol=0)
    assert (having - without).abs().max() > 1e-3
