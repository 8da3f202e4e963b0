"""Segments of a packed sequence: their order, times, positions and who sees whom."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from icve.models import attention
from icve.models.attention import joint_attention, packed_attention
from icve.models.layout import Grid, PackedLayout, Segment, pack, padded_text, text_tokens
from icve.models.rope import rotary_frequencies
from icve.models.sequence_parallel import Shards, sequence_parallel

HEADS, WIDTH = 4, 6
SEGMENTS = (
    Segment("prefix", 2, time="zero", rope=Grid((1, 1, 2))),
    Segment("source", 6, time="zero", rope=Grid((1, 2, 3))),
    Segment("target", 5, rope=Grid((5, 1, 1), origin=(2, 0, 0))),
    Segment("semantic", 3, rope="zero", shared=True),
    Segment("text", 4, shared=True),
)


def test_neighbours_at_one_time_are_modulated_together():
    layout = pack(SEGMENTS)
    assert layout.times == ("zero", "target")
    assert layout.runs.lengths == ((0, 8), (1, 12))
    assert layout.split_runs.lengths == ((0, 8), (1, 5))
    assert (layout.shared_runs.times, layout.shared_runs.lengths) == ((1,), ((0, 7),))
    # A clean reference after the noised target: three runs, still two modulations.
    late = pack([SEGMENTS[1], SEGMENTS[2], Segment("reference", 3, time="zero")])
    assert (late.times, late.runs.lengths) == (("zero", "target"), ((0, 6), (1, 5), (0, 3)))


def test_sections_and_rotations_follow_the_segments():
    layout = pack(SEGMENTS)
    assert (layout.section("target"), layout.section("text")) == (slice(8, 13), slice(16, 20))
    rope = layout.rotations((2, 2, 2), 256.0, torch.device("cpu"))
    torch.testing.assert_close(rope[2:8], rotary_frequencies((1, 2, 3), (2, 2, 2)))
    # An origin counts on: positions 2 to 6 along time.
    torch.testing.assert_close(rope[8:13], rotary_frequencies((7, 1, 1), (2, 2, 2))[2:])
    assert (rope[13:16] == 0).all()
    assert (rope[16:] == 1).all()


def test_every_process_keeps_the_rotations_of_its_own_tokens():
    alone = pack(SEGMENTS).rotations((2, 2, 2), 256.0, torch.device("cpu"))
    ranks = []
    for rank in (0, 1):
        shards = Shards("", rank, ([1, 1], [3, 3], [3, 2]))
        ranks.append(PackedLayout(SEGMENTS, shards=shards).rotations((2, 2, 2), 256.0, torch.device("cpu")))
    assert torch.equal(ranks[0], alone[[0, 2, 3, 4, 8, 9, 10, *range(13, 20)]])
    assert torch.equal(ranks[1], alone[[1, 5, 6, 7, 11, 12, *range(13, 20)]])


def test_what_is_no_layout_is_refused():
    with pytest.raises(ValueError, match="come after"):
        pack([Segment("text", 4, shared=True), SEGMENTS[1]])
    with pytest.raises(ValueError, match="'source' has 5 tokens on a grid"):
        pack([Segment("source", 5, rope=Grid((1, 2, 3)))])
    with pytest.raises(ValueError, match="not 'causal'"):
        PackedLayout(SEGMENTS, "causal")


def projections(batch: int, tokens: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(tokens)
    return [torch.randn(batch, tokens, HEADS, WIDTH, generator=random, dtype=torch.float64) for _ in range(3)]


def allowed(segments, rule: str, lengths) -> torch.Tensor:
    """Which query may see which key: (B, N, N), in words."""
    clean = torch.cat([torch.full((s.tokens,), s.time == "zero") for s in segments])
    seen = torch.ones(len(clean), len(clean), dtype=torch.bool)
    if rule == "static_context":
        seen = ~clean[:, None] | clean[None, :]
    real = torch.ones(len(lengths), len(clean), dtype=torch.bool)
    for row, length in enumerate(lengths):
        real[row, len(clean) - segments[-1].tokens + length :] = False
    return seen[None] & real[:, None]


CASES = {
    "full": (SEGMENTS, "full", (4, 4)),
    "static context": (SEGMENTS, "static_context", (4, 4)),
    "static context, texts of several lengths": (SEGMENTS, "static_context", (2, 4)),
    "clean tokens last": ((*SEGMENTS[:4], Segment("text", 4, time="zero", shared=True)), "static_context", (1, 4)),
    "nothing clean": (SEGMENTS[2:], "static_context", (3, 4)),
    "nothing shared": (SEGMENTS[:3], "static_context", (5, 5)),
}


@pytest.mark.parametrize(("segments", "rule", "lengths"), CASES.values(), ids=CASES.keys())
def test_attention_is_that_of_the_mask(segments, rule, lengths):
    layout = pack(segments, lengths, dtype=torch.float64, heads=HEADS, rule=rule)
    query, key, value = projections(len(lengths), sum(s.tokens for s in segments))
    attention = joint_attention(query, key, value, layout)
    attention.attend()
    mask = allowed(segments, rule, lengths)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask[:, None]
    )
    real = mask[:, -1]  # padded queries have no meaning
    torch.testing.assert_close(attention.packed()[real], expected.transpose(1, 2).flatten(2)[real], atol=1e-12, rtol=0)


def compare_shared(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for name, (segments, rule, lengths) in CASES.items():
        alone = pack(segments, lengths, dtype=torch.float64, heads=HEADS, rule=rule)
        whole = projections(len(lengths), sum(s.tokens for s in segments))
        expected = joint_attention(*whole, alone)
        expected.attend()
        with sequence_parallel(dist.group.WORLD):
            layout = pack(segments, lengths, dtype=torch.float64, heads=HEADS, rule=rule)
        assert layout.shards is not None
        own = [layout.shards.take(x[:, : alone.split], 1) for x in whole]
        attention = joint_attention(*own, layout)
        attention.attend(*(x[:, alone.split :] for x in whole))
        torch.testing.assert_close(
            attention.split(), layout.shards.take(expected.split(), 1), atol=1e-12, rtol=0, msg=name
        )
        valid = allowed(segments, rule, lengths)[:, -1, alone.split :]
        torch.testing.assert_close(attention.shared()[valid], expected.shared()[valid], atol=1e-12, rtol=0, msg=name)
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_processes_that_share_tokens_follow_the_same_rule(tmp_path):
    torch.multiprocessing.spawn(compare_shared, args=(2, str(tmp_path / "store")), nprocs=2)


@pytest.mark.parametrize("lengths", [(4, 4), (1, 3)])
@pytest.mark.parametrize("by_sample", [False, True])
def test_cross_attention_takes_the_layout_of_its_keys(lengths, by_sample, monkeypatch):
    monkeypatch.setattr(attention, "attends_by_sample", lambda key: by_sample)
    layout = pack([Segment("text", 4, shared=True)], lengths, dtype=torch.float64)
    (query, *_), (_, key, value) = projections(2, 7), projections(2, 4)
    found = packed_attention(query, key, value, layout)
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    expected = F.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (query, key, value)), attn_mask=mask[:, None, None]
    )
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-12, rtol=0)


def test_texts_on_an_accelerator_have_few_lengths():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [text_tokens(n, cpu) for n in (1, 63, 200)] == [1, 63, 200]  # no more than there is to compute
    assert {text_tokens(n, cuda) for n in range(1, 257)} == {64, 128, 192, 256}
    assert all(n <= text_tokens(n, cuda) < n + 64 for n in range(1, 1025))


def test_padded_text_holds_the_longest():
    text = torch.randn(2, 9, 3)
    assert torch.equal(padded_text(text, 5), text[:, :5])
    assert torch.equal(padded_text(text, 9), text)
    longer = padded_text(text, 11)
    assert longer.shape == (2, 11, 3)
    assert torch.equal(longer[:, :9], text)
    assert not longer[:, 9:].any()
