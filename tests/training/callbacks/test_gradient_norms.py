from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from icve.training.callbacks.gradient_norms import gradient_norms, part_of, transformer_gradient_norms


def test_which_part_a_parameter_belongs_to():
    for name, part in {
        "x_embedder.proj.weight": "embeddings",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight": "embeddings",
        "transformer.transformer_blocks.3.attn.to_q.weight": "transformer_blocks",
        "single_transformer_blocks.0.attn.to_q.lora_A.default.weight": "single_transformer_blocks",
        "norm_out.linear.weight": "output",
        "proj_out.bias": "output",
    }.items():
        assert part_of(name) == part


def test_pieces_on_two_processes_have_the_norms_of_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    names = ("a_blocks.x", "a_blocks.y", "proj_out.x")
    whole = {name: torch.randn(6, generator=generator).bfloat16() for name in names}
    expected = {
        "output": float(whole["proj_out.x"].float().norm()),
        "a_blocks": float(torch.cat([whole["a_blocks.x"], whole["a_blocks.y"]]).float().norm()),
    }

    def norms(gradients, sharded):
        result = gradient_norms(gradients, expected, torch.device("cpu"), sharded)
        return {part: float(norm) for part, norm in result.items()}

    assert norms(whole.items(), sharded=False) == pytest.approx(expected, rel=1e-6)
    # The second process holds the end of one gradient and all of another, and nothing of the third.
    cuts = {"a_blocks.x": 4, "a_blocks.y": 0, "proj_out.x": 6}
    sums = []
    monkeypatch.setattr(dist, "all_reduce", lambda squares: sums.append(squares.clone()))
    norms(((name, g[cuts[name] :]) for name, g in whole.items() if cuts[name] < 6), sharded=True)
    monkeypatch.setattr(dist, "all_reduce", lambda squares: squares.add_(sums[0]))
    assert norms(((name, g[: cuts[name]]) for name, g in whole.items()), sharded=True) == pytest.approx(
        expected, rel=1e-6
    )


def test_a_strategy_that_shards_gradients_is_asked_for_them(make_module, monkeypatch):
    module, calls = make_module(), []
    pieces = [("transformer.proj_out.bias", torch.full((4,), 3.0)), ("transformer.x_embedder.proj.bias", torch.ones(1))]
    monkeypatch.setattr(dist, "all_reduce", calls.append)
    trainer = SimpleNamespace(strategy=SimpleNamespace(named_gradients=lambda: iter(pieces)))
    norms = transformer_gradient_norms(trainer, module)
    assert norms["output"] == 6.0
    assert norms["embeddings"] == 1.0
    assert norms["transformer_blocks"] == norms["single_transformer_blocks"] == 0.0
    assert len(calls) == 1
