"""Encoding the next micro-batch beside the backward pass changes nothing but the time that it takes."""

import threading

import pytest
import torch

from icve.models.weightless.dct import DCTCodec
from icve.training.callbacks.checkpoints import Checkpoints
from icve.training.callbacks.encode_ahead import EncodeAhead
from icve.training.callbacks.nonfinite import SkipNonFinite
from tests.training.conftest import TinyPairs, whole_wan

MAIN = threading.main_thread().name


class Calls:
    """What a frozen part encodes in which thread; it fails at the call of that number."""

    def __init__(self, part, fails_at=None):
        self.encode, self.calls, self.fails_at = part.encode, [], fails_at
        part.encode = self

    def __call__(self, what):
        self.calls.append((threading.current_thread().name, what))
        if len(self.calls) == self.fails_at:
            raise ValueError("The codec cannot encode this: give it other clips.")
        return self.encode(what)

    def __len__(self):
        return len(self.calls)

    def encoded(self):
        """Validation comes earlier, or later, than the batch after it."""
        return sorted(what for _, what in self.calls)

    def ahead(self):
        """Of every call, whether it was in another thread than the steps."""
        return [thread != MAIN for thread, _ in self.calls]


class Run:
    """What a run has trained."""

    def __init__(self, make_module, make_trainer, make_losses, data, steps=4, ahead=True, callbacks=(), **options):
        parts = options.pop("parts", {})
        self.module, self.losses = make_module(**parts, instruction_dropout=0.4), make_losses()
        self.codec, self.texts = Calls(self.module.codec), Calls(self.module.text_encoder)
        path = options.pop("ckpt_path", None)
        callbacks = [SkipNonFinite(), *([EncodeAhead()] if ahead else []), *callbacks, self.losses]
        make_trainer(steps, callbacks, **options).fit(self.module, datamodule=data, ckpt_path=path)

    def same_as(self, other):
        assert self.losses.lines
        for (loss, *rest), (expected, *others) in zip(self.losses.lines, other.losses.lines, strict=True):
            assert rest == others
            assert loss == expected or loss != loss != expected != expected
        assert self.losses.validated == other.losses.validated
        weights = other.module.transformer.state_dict()
        assert all(torch.equal(w, weights[name]) for name, w in self.module.transformer.state_dict().items())


@pytest.fixture
def run(make_module, make_trainer, make_losses):
    def run(data, **options):
        return Run(make_module, make_trainer, make_losses, data, **options)

    return run


class SomeEmpty(TinyPairs):
    """As if steps had different numbers of samples: the rest of their micro-batches are empty."""

    def batch(self, number):
        if number % 3 != 2:
            return super().batch(number) | {"step_samples": 4}
        return {"source": torch.zeros(0, dtype=torch.uint8), "target": torch.zeros(0), "instruction": [], "id": []}


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (TinyPairs, {}),
        (TinyPairs, {"accumulate_grad_batches": 2}),
        (SomeEmpty, {"accumulate_grad_batches": 3}),
        (lambda: TinyPairs(mask=True, validation=2), {"val_check_interval": 1, "num_sanity_val_steps": 1}),
        (lambda: TinyPairs(poison=(1,)), {}),
    ],
    ids=["plain", "accumulation", "empty micro-batches", "validation", "a batch that is not finite"],
)
def test_losses_and_weights_are_the_same_bit_for_bit(run, data, options):
    ahead, plain = run(data(), **options), run(data(), ahead=False, **options)
    ahead.same_as(plain)
    assert ahead.texts.encoded() == plain.texts.encoded()
    assert len(ahead.codec) == len(plain.codec)
    assert not any(plain.codec.ahead())
    assert sum(ahead.codec.ahead()) >= 2
    assert "" in {words for _, texts in ahead.texts.calls for words in texts}  # some were dropped


def test_wans_parts_encode_ahead_too(run, tiny_wan):
    ahead, plain = (run(TinyPairs(), parts=whole_wan(tiny_wan[0]), ahead=ahead) for ahead in (True, False))
    ahead.same_as(plain)
    assert ahead.codec.ahead() == [False] * 2 + [True] * 6
    assert ahead.texts.ahead() == [False] + [True] * 3


def test_all_but_the_first_batch_are_encoded_ahead_and_none_beyond_the_last(run, make_data):
    ahead = run(make_data())
    assert ahead.codec.ahead() == [False] * 2 + [True] * 6
    assert ahead.texts.ahead() == [False] + [True] * 3


def test_latents_of_a_cache_leave_nothing_to_do(run, make_data):
    data = make_data()
    plain = data.batch

    def cached(number):
        batch, codec = plain(number), DCTCodec()
        return batch | {role: codec.encode(batch[role].float() / 127.5 - 1) for role in ("source", "target")}

    data.batch = cached
    ahead = run(data)
    assert not len(ahead.codec)
    assert not any(ahead.texts.ahead())


@pytest.mark.parametrize("stop", [2, 3])
def test_a_resumed_run_goes_on_as_the_uninterrupted(run, make_data, tmp_path, stop):
    """In the middle of an epoch, with two micro-batches a step; also without encoding ahead from there on."""
    options = {"accumulate_grad_batches": 2}
    whole = run(make_data(), steps=5, ahead=False, **options)
    saving = Checkpoints(every_n_steps=stop, keep_last=1)
    run(make_data(), steps=stop, callbacks=[saving], folder=tmp_path / "part", **options)
    checkpoint = tmp_path / "part" / "checkpoints" / "last"
    for ahead in (True, False):
        resumed = run(make_data(), steps=5, ahead=ahead, ckpt_path=checkpoint, **options)
        resumed.losses.lines = whole.losses.lines[: 2 * stop] + resumed.losses.lines
        resumed.same_as(whole)


def test_texts_are_encoded_again_where_the_step_is_not_the_one_foretold(
    make_module, make_trainer, make_data, make_losses
):
    """As where a trainer skips a step's number."""

    class Wrong(EncodeAhead):
        def on_train_batch_start(self, *args):
            super().on_train_batch_start(*args)
            self._ends_step = False

    results = []
    for callback in (EncodeAhead(), Wrong()):
        module, losses = make_module(instruction_dropout=0.5), make_losses()
        codec, texts = Calls(module.codec), Calls(module.text_encoder)
        make_trainer(6, [callback, losses]).fit(module, datamodule=make_data())
        results.append((losses.lines, len(codec), len(texts)))
    (right, *counts), (wrong, clips, again) = results
    assert wrong == right
    assert clips == counts[0] + 2  # and one batch more, beyond the last
    assert again > counts[1] + 1


def test_an_error_of_the_codec_is_raised_where_its_batch_is_trained(make_module, make_trainer, make_data, make_losses):
    module, losses = make_module(), make_losses()
    Calls(module.codec, fails_at=6)  # the third batch's
    ahead = EncodeAhead()
    with pytest.raises(ValueError, match=r"^The codec cannot encode this: give it other clips\.$"):
        make_trainer(4, [ahead, losses]).fit(module, datamodule=make_data())
    assert len(losses.lines) == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode ahead")]
