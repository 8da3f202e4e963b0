import copy

import pytest
import torch
from torch import nn

from icve.training.optimization.optimizers import MuonAdamW, orthogonalise
from tests.training.conftest import tiny_transformer


def parameters(*shapes, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in shapes]


def set_gradients(params, step):
    g = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to compare with")
def test_matrices_move_as_under_torch_muon():
    mine, theirs = (parameters((24, 16), (24, 16), (16, 24), (16, 16)) for _ in range(2))
    optimizer = MuonAdamW(mine, lr=0.02, weight_decay=0.1, momentum=0.9)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in mine]
    for step in range(4):
        set_gradients(mine, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for a, b, before in zip(mine, theirs, start, strict=True):
        # Both iterate in bfloat16 but round in another order.
        assert (a - b).norm() < 0.02 * (b - before).norm()


def test_the_rest_moves_as_under_torch_adamw():
    shapes = [(7,), (3, 4, 2)]
    mine, theirs = parameters(*shapes), parameters(*shapes)
    optimizer = MuonAdamW(mine, lr=9.0, adamw_lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    reference = torch.optim.AdamW(
        [{"params": theirs[:1], "weight_decay": 0.0}, {"params": theirs[1:], "weight_decay": 0.1}],
        lr=0.01,
        betas=(0.8, 0.95),
    )
    for step in range(3):
        set_gradients(mine, step)
        set_gradients(theirs, step)
        optimizer.step()
        reference.step()
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_orthogonalised_matrices_keep_their_singular_vectors():
    matrices = torch.randn(3, 20, 12, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices).float()
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    U, _, V = torch.linalg.svd(matrices, full_matrices=False)
    diagonal = U.mT @ result @ V.mT
    assert (diagonal - torch.diag_embed(torch.diagonal(diagonal, dim1=1, dim2=2))).abs().max() < 0.05


def test_which_parameters_are_hidden_matrices():
    model = tiny_transformer()
    optimizer = MuonAdamW(model.named_parameters())
    kinds = {name: group["kind"] for group in optimizer.param_groups for name in group["param_names"]}
    assert kinds.keys() == dict(model.named_parameters()).keys()
    muon = {name for name, kind in kinds.items() if kind == "muon"}
    for name in (
        "transformer_blocks.0.attn.to_q.weight",
        "transformer_blocks.0.ff_context.net.2.weight",
        "single_transformer_blocks.0.proj_out.weight",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_v.weight",
    ):
        assert name in muon
    for name in (
        "proj_out.weight",
        "norm_out.linear.weight",
        "x_embedder.proj.weight",
        "context_embedder.proj_in.weight",
        "transformer_blocks.0.norm1.linear.weight",
        "single_transformer_blocks.0.norm.linear.weight",
        "time_text_embed.timestep_embedder.linear_1.weight",
        "transformer_blocks.0.attn.to_q.bias",
    ):
        assert kinds[name] == "adamw"


def test_vectors_are_not_decayed():
    optimizer = MuonAdamW(tiny_transformer().named_parameters(), weight_decay=0.1)
    for group in optimizer.param_groups:
        assert {p.ndim == 1 for p in group["params"]} == {group["weight_decay"] == 0.0}


def test_saved_and_loaded_it_goes_on_exactly():
    params = parameters((8, 8), (5,))
    optimizer = MuonAdamW(params, lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    twins = [nn.Parameter(p.detach().clone()) for p in params]
    twin = MuonAdamW(twins, lr=0.5)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for group in (params, twins):
        set_gradients(group, 1)
    optimizer.step()
    twin.step()
    for a, b in zip(params, twins, strict=True):
        assert torch.equal(a, b)


def test_without_gradients_nothing_changes():
    params = parameters((8, 8), (5,))
    optimizer = MuonAdamW(params, lr=0.1, weight_decay=0.5)
    set_gradients(params, 0)
    optimizer.step()
    before = copy.deepcopy((params, optimizer.state_dict()["state"]))
    optimizer.zero_grad(set_to_none=True)
    optimizer.step()
    for a, b in zip(params, before[0], strict=True):
        assert torch.equal(a, b)
    for index, state in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, before[1][index][name]) for name, value in state.items())


def test_it_learns():
    target = torch.randn(16, 8, generator=torch.Generator().manual_seed(3))
    weight = nn.Parameter(torch.zeros(16, 8))
    bias = nn.Parameter(torch.zeros(16))
    optimizer = MuonAdamW([weight, bias], lr=0.05)
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(4))
    losses = []
    for _ in range(200):
        loss = (inputs @ weight.T + bias - inputs @ target.T - 1.0).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"betas": (0.9, 1.0)}, {"newton_schulz_steps": 0}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="MuonAdamW needs"):
        MuonAdamW(parameters((2, 2)), **wrong)
