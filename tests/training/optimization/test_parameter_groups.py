"""Parts of the model with learning rates of their own."""

import copy
from functools import partial

import pytest
import torch

from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.optimization.optimizers import MuonAdamW
from icve.training.optimization.parameter_groups import check_names, group_label, scale_learning_rates
from icve.training.optimization.schedule import Schedule
from tests.training.conftest import tiny_transformer

FACTORS = {r"^single_transformer_blocks\.": 0.5, r"\.attn\.": 0.1}
OPTIMIZERS = [partial(torch.optim.AdamW, lr=0.01), partial(torch.optim.SGD, lr=0.01), partial(MuonAdamW, lr=0.01)]


@pytest.mark.parametrize("make", OPTIMIZERS, ids=lambda make: make.func.__name__)
def test_a_part_moves_as_under_an_optimizer_of_its_own_rate(make):
    model, reference = tiny_transformer(), {}
    optimizer = make(model.named_parameters())
    scale_learning_rates(optimizer, FACTORS)
    for factor in (1.0, 0.5, 0.1):
        twin = tiny_transformer()
        reference[factor] = dict(twin.named_parameters()), make(twin.named_parameters(), lr=0.01 * factor)
    for step in range(2):
        for parameters, _ in [(dict(model.named_parameters()), None), *reference.values()]:
            generator = torch.Generator().manual_seed(step)
            for p in parameters.values():
                p.grad = torch.randn(p.shape, generator=generator)
        for one in (optimizer, *(other for _, other in reference.values())):
            one.step()
    moved = set()
    for name, p in model.named_parameters():
        factor = 0.5 if name.startswith("single_") else 0.1 if ".attn." in name else 1.0
        torch.testing.assert_close(p, reference[factor][0][name], rtol=1e-4, atol=1e-6)
        moved.add(factor)
    assert moved == {1.0, 0.5, 0.1}


def test_the_schedule_multiplies_and_a_resumed_run_goes_on_exactly(make_module, make_trainer, make_data, tmp_path):
    def train(steps, folder, ckpt_path=None):
        module = make_module(schedule=Schedule(warmup_steps=4, parts=FACTORS))
        trainer = make_trainer(steps, [Checkpoints(every_n_steps=2, keep_last=0)], folder)
        trainer.fit(module, datamodule=make_data(), ckpt_path=ckpt_path)
        return module, trainer.optimizers[0]

    whole, optimizer = train(4, tmp_path / "whole")
    # The rates of the step to come: after four steps the warm-up is over.
    rates = {group_label(group, 0): group["lr"] for group in optimizer.param_groups}
    assert rates["muon"] == rates["adamw"] == pytest.approx(1e-2)
    assert rates[r"muon_\.attn\."] == pytest.approx(1e-3)
    assert rates[r"adamw_^single_transformer_blocks\."] == pytest.approx(5e-3)
    _, early = train(2, tmp_path / "half")
    assert {group_label(group, 0): group["lr"] for group in early.param_groups} == pytest.approx(
        {label: 0.75 * rate for label, rate in rates.items()}
    )
    resumed, _ = train(4, tmp_path / "half", tmp_path / "half" / "checkpoints" / "step-000002")
    for name, p in resumed.transformer.state_dict().items():
        assert torch.equal(p, whole.transformer.state_dict()[name]), name


def test_state_of_other_groups_is_refused():
    optimizer = torch.optim.AdamW(tiny_transformer().named_parameters())
    other = copy.deepcopy(optimizer)
    scale_learning_rates(optimizer, {"x_embedder": 0.5})
    scale_learning_rates(other, {"proj_out": 0.5})
    with pytest.raises(ValueError, match=r"resume with the optimizer and model\.schedule\.parts of its config\.yaml"):
        other.load_state_dict(optimizer.state_dict())


def test_state_that_knows_no_names_is_refused_where_it_is_kept_by_name():
    optimizer = torch.optim.AdamW(tiny_transformer().named_parameters())
    check_names(optimizer, optimizer.state_dict())
    nameless = torch.optim.AdamW(tiny_transformer().parameters()).state_dict()
    with pytest.raises(ValueError, match="other groups of parameters"):
        check_names(optimizer, nameless)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"x_embedder": 0.5, "wrong_blocks": 2.0}, "'wrong_blocks' .* matches no trained parameter"),
        ({"_blocks": 0.5, "^transformer_blocks": 2.0}, "'.transformer_blocks' .* that an earlier pattern does not"),
        ({"x_embedder": -1.0}, "must not be negative, got -1.0"),
        ({"x_embedder(": 1.0}, "no regular expression"),
    ],
)
def test_what_cannot_be_meant_is_refused(factors, message):
    with pytest.raises(ValueError, match=message):
        scale_learning_rates(torch.optim.AdamW(tiny_transformer().named_parameters()), factors)
