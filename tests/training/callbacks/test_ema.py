import pytest
import torch

from icve.training.callbacks.ema import EMA


def test_the_shadow_is_the_average_of_the_weights_seen(make_module, make_trainer, make_data):
    ema, module, seen = EMA(decay=0.9, warmup=False), make_module(), []

    module.on_train_batch_end = lambda *args: seen.append([p.detach().clone() for p in module.transformer.parameters()])
    start = [p.detach().clone() for p in module.transformer.parameters()]
    make_trainer(3, callbacks=[ema]).fit(module, datamodule=make_data())
    for index, shadow in enumerate(ema.shadow.values()):
        expected = start[index]
        for weights in seen:
            expected = 0.9 * expected + 0.1 * weights[index]
        torch.testing.assert_close(shadow, expected)


def test_added_to_a_resumed_run_it_starts_from_the_weights_that_were_read(make_module, make_trainer):
    """Where processes share the weights, a checkpoint is read after `on_fit_start`."""
    module, ema, trainer = make_module(), EMA(), make_trainer(1)
    ema.on_fit_start(trainer, module)
    with torch.no_grad():
        for parameter in module.transformer.parameters():
            parameter.fill_(0.25)
    ema.on_train_start(trainer, module)
    assert ema.shadow.keys() == dict(module.transformer.named_parameters()).keys()
    assert all(bool((shadow == 0.25).all()) for shadow in ema.shadow.values())


def test_one_update_per_optimizer_step(make_module, make_trainer, make_data):
    ema = EMA()
    make_trainer(3, callbacks=[ema], accumulate_grad_batches=4).fit(make_module(), datamodule=make_data())
    assert ema.updates == 3


def test_warm_up_shortens_the_memory(make_module):
    module = make_module()
    ema = EMA(decay=0.999)
    ema.shadow = {name: torch.zeros_like(p) for name, p in module.transformer.named_parameters()}
    ema.update(module)
    for name, p in module.transformer.named_parameters():
        torch.testing.assert_close(ema.shadow[name], 0.9 * p.detach())  # (1 + 0) / (10 + 0) of the zeros remains
    ema.updates = 10**6
    before = {name: value.clone() for name, value in ema.shadow.items()}
    ema.update(module)
    for name, p in module.transformer.named_parameters():
        torch.testing.assert_close(ema.shadow[name], 0.999 * before[name] + 0.001 * p.detach())


def test_validation_sees_the_average_and_training_goes_on_with_the_live_weights(make_module, make_trainer, make_data):
    ema, module, seen = EMA(decay=0.9), make_module(), {}
    weight = module.transformer.proj_out.weight

    def note(name):
        return lambda *args: seen.setdefault(name, weight.detach().clone())

    module.on_train_batch_end = note("trained")
    module.on_validation_epoch_end = note("validated")
    trainer = make_trainer(1, callbacks=[ema], val_check_interval=1)
    trainer.fit(module, datamodule=make_data(validation=1))
    assert torch.equal(seen["validated"], ema.shadow["proj_out.weight"])
    assert not torch.equal(seen["validated"], seen["trained"])
    assert torch.equal(weight, seen["trained"])


def test_the_shadow_is_float32_under_half_precision(make_module, make_trainer, make_data):
    ema = EMA()
    make_trainer(2, callbacks=[ema], precision="bf16-true", val_check_interval=1).fit(
        make_module(), datamodule=make_data(validation=1)
    )
    assert {value.dtype for value in ema.shadow.values()} == {torch.float32}


def test_a_decay_of_one_is_refused():
    with pytest.raises(ValueError, match="decay"):
        EMA(decay=1.0)
