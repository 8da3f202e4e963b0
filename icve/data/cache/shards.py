"""Files of tensors in a latent cache: mapped where they are local, read by ranges where they are remote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from icve.runtime.storage.remote_file import read_ranges, read_remote, remote_state
from icve.runtime.storage.remote_path import RemotePath

_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "BOOL": torch.bool, "I64": torch.int64}
_HEAD = 1 << 16  # bytes asked for first: mostly the whole header


def open_shard(file: Path) -> Any:
    """A safetensors file to read from, with the methods of ``safe_open``.

    Raises:
        OSError: it cannot be opened; RemoteError: its server does not give it.
        SafetensorError: it is damaged.
    """
    return RemoteShard(file) if isinstance(file, RemotePath) else safe_open(file, "pt")


class RemoteShard:
    """A safetensors file behind a URL: its header is read once, and of the rest only the tensors that are asked for.

    The format is eight bytes of the header's length, the header (JSON: type, shape and place of every tensor), and the
    tensors' bytes.
    """

    def __init__(self, file: RemotePath) -> None:
        self._file, size = file, remote_state(file).size
        head = read_remote(file, 0, min(size, _HEAD))
        self._start = 8 + int.from_bytes(head[:8], "little")
        if size < 8 or self._start > size:
            raise SafetensorError("its header is cut off")
        if len(head) < self._start:
            head += read_remote(file, len(head), self._start)
        try:
            self._header: dict[str, Any] = json.loads(head[8 : self._start])
            places = {name: entry["data_offsets"] for name, entry in self._header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SafetensorError(f"its header is damaged: {error}") from error
        if any(not 0 <= start <= end <= size - self._start for start, end in places.values()):
            raise SafetensorError("it is truncated")
        self._places = places

    def __enter__(self) -> RemoteShard:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def metadata(self) -> dict[str, str]:
        """What stands in the header besides the tensors."""
        return self._header.get("__metadata__") or {}

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._places)

    def get_tensors(self, names: list[str]) -> dict[str, Tensor]:
        """Tensors, asked for at the same time. Raises SafetensorError where one is not there, and as opening does."""
        if missing := [name for name in names if name not in self._places]:
            raise SafetensorError(f"it has no tensor {missing[0]}")
        ranges = [(self._start + start, self._start + end) for start, end in map(self._places.get, names)]  # type: ignore[misc]
        return {
            name: torch.frombuffer(bytearray(data), dtype=_TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, data in zip(names, read_ranges(self._file, ranges), strict=True)
            for entry in [self._header[name]]
        }

    def get_tensor(self, name: str) -> Tensor:
        """One of them."""
        return self.get_tensors([name])[name]


def read_tensors(shard: Any, names: list[str]) -> dict[str, Tensor]:
    """Tensors of an open shard. Raises SafetensorError, OSError."""
    if isinstance(shard, RemoteShard):
        return shard.get_tensors(names)
    return {name: shard.get_tensor(name) for name in names}
