import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from icve.models.rope import norm_rotate, rotary_frequencies, rotate


def test_frequencies_and_rotation_are_those_of_diffusers():
    peer = HunyuanVideoRotaryPosEmbed(2, 1, [4, 6, 6], 256.0)(torch.zeros(1, 16, 3, 8, 12))
    ours = rotary_frequencies((3, 4, 6), (4, 6, 6))
    torch.testing.assert_close(ours.real.repeat_interleave(2, 1), peer[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.imag.repeat_interleave(2, 1), peer[1], atol=1e-6, rtol=0)
    x = torch.randn(2, 72, 3, 16)
    torch.testing.assert_close(rotate(x, ours), apply_rotary_emb(x, peer, sequence_dim=1), atol=1e-5, rtol=0)


def test_scores_depend_on_relative_position_only():
    rope = rotary_frequencies((1, 1, 8), (4, 6, 6)).repeat(1, 1)
    query, key = torch.randn(2, 1, 1, 1, 16).expand(2, 1, 8, 1, 16)
    scores = torch.einsum("bnhd,bmhd->nm", rotate(query.contiguous(), rope), rotate(key.contiguous(), rope))
    torch.testing.assert_close(scores[0, 3], scores[4, 7], atol=1e-4, rtol=0)
    assert (scores[0, 3] - scores[0, 4]).abs() > 1e-3


def test_gradients_are_those_of_the_plain_composition():
    rope = rotary_frequencies((1, 2, 3), (4, 6, 6)).to(torch.complex128)
    x = torch.randn(2, 6, 3, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: norm_rotate(x, w, rope), (x, weight))
    plain = rotate(torch.nn.functional.rms_norm(x, (16,), weight, 1e-6), rope)
    torch.testing.assert_close(norm_rotate(x, weight, rope), plain)


def test_the_norm_goes_over_as_many_dimensions_as_its_weight():
    rope = rotary_frequencies((1, 2, 3), (4, 6, 6)).to(torch.complex128)
    x = torch.randn(2, 6, 3, 16, dtype=torch.float64, requires_grad=True)
    for weight in (torch.rand(16), torch.rand(3, 16)):
        weight = weight.double().requires_grad_()
        for turns in (rope, None):
            assert torch.autograd.gradcheck(lambda x, w, turns=turns: norm_rotate(x, w, turns), (x, weight))
            axes = tuple(range(-weight.ndim, 0))
            plain = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + 1e-6) * weight
            plain = plain if turns is None else rotate(plain, turns)
            torch.testing.assert_close(norm_rotate(x, weight, turns), plain)


def test_without_a_rotation_the_gradient_that_comes_is_left_alone():
    x = torch.randn(1, 2, 3, 4, requires_grad=True)
    gradient = torch.randn(1, 2, 3, 4)
    before = gradient.clone()
    norm_rotate(x, torch.ones(4), None).backward(gradient)
    assert torch.equal(gradient, before)


def test_a_table_is_made_once_for_training_and_validation():
    grid, axes = (3, 4, 5), (2, 4, 2)
    with torch.inference_mode():
        first = rotary_frequencies(grid, axes)
    assert rotary_frequencies(grid, list(axes), device=torch.device("cpu")) is first
    assert not first.is_inference()
    norm_rotate(torch.randn(1, 60, 1, 8, requires_grad=True), torch.ones(8), first).sum().backward()
    for other in ((grid, axes, 100.0), ((3, 5, 4), axes), (grid, (4, 2, 2)), (grid, axes, 256.0, None, (1, 0, 0))):
        assert not torch.equal(rotary_frequencies(*other), first)
    assert rotary_frequencies(grid, axes, device=torch.device("meta")).is_meta


def test_the_tables_that_are_kept_are_few_and_real():
    first = rotary_frequencies((2, 2, 2), (2, 2, 2))
    with FakeTensorMode():
        assert isinstance(rotary_frequencies((2, 2, 2), (2, 2, 2)), FakeTensor)
    assert rotary_frequencies((2, 2, 2), (2, 2, 2)) is first
    for frames in range(1, 20):
        rotary_frequencies((frames, 1, 1), (2, 2, 2))
    assert rotary_frequencies((2, 2, 2), (2, 2, 2)) is not first
