import torch

from icve.training.checkpoints.state_dicts import deal
from icve.training.checkpoints.state_files import AVERAGE, WEIGHTS, Slice


def test_slices_are_dealt_out_by_size_and_in_whichever_order_they_come():
    sizes = {"a.weight": 8, "a.bias": 1, "b.weight": 8, "b.bias": 1}
    slices = [Slice(kind, name, 0, torch.zeros(n)) for kind in (WEIGHTS, AVERAGE) for name, n in sizes.items()]
    parts = [deal(slices, rank, 2) for rank in (0, 1)]
    assert [sum(piece.values.numel() for piece in part) for part in parts] == [18, 18]
    assert {piece.key for part in parts for piece in part} == {piece.key for piece in slices}
    again = [deal(slices[::-1], rank, 2) for rank in (0, 1)]
    assert [[piece.key for piece in part] for part in again] == [[piece.key for piece in part] for part in parts]
