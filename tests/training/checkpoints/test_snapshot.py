import torch
from safetensors.torch import load_file

from icve.training.checkpoints import snapshot
from icve.training.checkpoints.snapshot import Snapshots
from icve.training.checkpoints.state_files import WEIGHTS, Slice, write_slices


def test_copies_stay_as_they_are_and_their_memory_is_used_again():
    values, snapshots = torch.arange(6.0).view(2, 3), Snapshots()
    (copy,) = snapshots.copy([Slice(WEIGHTS, "w", 0, values)])
    values += 1
    assert torch.equal(copy.values, torch.arange(6.0).view(2, 3))
    (again,) = snapshots.copy([Slice(WEIGHTS, "w", 0, values)])
    assert again.values.data_ptr() == copy.values.data_ptr()
    assert torch.equal(again.values, values)
    (other,) = snapshots.copy([Slice(WEIGHTS, "w", 0, values[:1].bfloat16())])
    assert torch.equal(other.values, values[:1].bfloat16())


def test_pinned_memory_is_shared_out_in_blocks(monkeypatch, tmp_path):
    """Of any size and type; with memory that is not pinned, for want of an accelerator."""
    empty, blocks = torch.empty, []

    def block(size, pin_memory=False, **options):
        if pin_memory:
            blocks.append(size)
        return empty(size, **options)

    monkeypatch.setattr(snapshot, "reads_pinned", lambda device: True)
    monkeypatch.setattr(snapshot, "_BLOCK", 256)
    monkeypatch.setattr(torch, "empty", block)
    snapshots = Snapshots()
    kinds = [torch.randn(3, 5), torch.randn(7).bfloat16(), torch.tensor(3.0), torch.randn(100), torch.empty(0)]
    slices = [Slice(WEIGHTS, f"w{n}", None if n == 2 else 0, values) for n, values in enumerate(kinds)]
    for _ in range(2):
        copies = snapshots.copy(slices)
    assert blocks == [256, 448]  # 64 + 64 + 64, and what is larger than the rest of a block and a block itself
    for copy, values in zip(copies, kinds, strict=True):
        assert torch.equal(copy.values, values)
        assert copy.values.shape == values.shape
    (file,) = write_slices(tmp_path, 0, 1, copies)
    written = load_file(file)
    assert all(torch.equal(written[piece.key], piece.values.view_as(written[piece.key])) for piece in copies)
