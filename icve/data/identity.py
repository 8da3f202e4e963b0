"""Whether things are still what they were: files by their content, encoders by class, configuration and weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from icve.data.manifest import resolve_path

_BLOCK, _BLOCKS = 1 << 16, 16  # what is read of a large file
_SAMPLED = 4096  # values read of a large weight tensor
_SHOWN = 60  # characters of a value shown in an error


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """A file when it was read: its path as the manifest has it, its size in bytes, its time of change in nanoseconds
    and a digest of its content.

    The size and digest identify it. The time only spares reading a file that was not touched since, so that a copy of
    the data, whose times differ, is still recognised.
    """

    path: str
    size: int
    modified: int
    digest: str

    @classmethod
    def of(cls, root: Path, path: str) -> FileIdentity:
        """Identity of the file that a manifest's path stands for. Raises OSError or ManifestError if there is none."""
        file = resolve_path(root, path)
        stat = os.stat(file)
        return cls(path, stat.st_size, stat.st_mtime_ns, file_digest(file))

    def difference(self, root: Path, path: str) -> str | None:
        """Why the file a row names now is not this one, in one sentence, or None if it is.

        A file that is not there (the machine that trains need not have the videos) is told by its path alone.
        """
        try:
            file = resolve_path(root, path)
            stat = os.stat(file)
        except (OSError, ValueError):
            return None if path == self.path else f"it names {path} now; {self.path} was encoded."
        if path == self.path and (stat.st_size, stat.st_mtime_ns) == (self.size, self.modified):
            return None
        if stat.st_size == self.size and file_digest(file) == self.digest:
            return None
        return f"{file} is not the file that was encoded: its content has changed."


def file_digest(file: str | os.PathLike) -> str:
    """Digest of a file's size and content: all of it up to 1 MiB, else 16 blocks of 64 KiB spread evenly from its first
    byte to its last, so that a film of any length costs the same. Raises OSError.
    """
    size = os.stat(file).st_size
    digest = hashlib.blake2b(f"{size}/".encode(), digest_size=16)
    with open(file, "rb") as stream:
        if size <= _BLOCK * _BLOCKS:
            digest.update(stream.read())
        else:
            for offset in np.linspace(0, size - _BLOCK, _BLOCKS).astype(np.int64):
                stream.seek(int(offset))
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """Digest of anything JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def files_digest(files: Iterable[Path]) -> str:
    """Digest of the names and content (:func:`file_digest`) of files, in any order. Raises OSError."""
    return json_digest(sorted([file.name, file_digest(file)] for file in files))


def describe_encoder(module: nn.Module) -> dict[str, Any]:
    """What a codec's or text encoder's output depends on: ``class``, ``config`` and a digest of its ``weights``.

    Left out of the configuration are private entries and paths that exist: where weights lie says nothing about them,
    and the digest speaks for their content. The digest is the encoder's own where it has a method
    ``weights_digest() -> str`` (one that reads its weights late has, so that training from a cache never does);
    otherwise it reads names, shapes, precision and up to 4096 values, spread evenly, of every tensor.
    """
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    if hasattr(module, "weights_digest"):
        return {"class": kind, "config": _settings(module.config), "weights": module.weights_digest()}
    config: dict[str, Any] = {}
    described: set[int] = set()
    for name, part in module.named_modules():
        settings = _settings(getattr(part, "config", None))
        # The blocks of a transformers model all refer to the model's own configuration.
        if settings and id(part.config) not in described:
            described.add(id(part.config))
            config |= {f"{name}.{key}".lstrip("."): value for key, value in settings.items()}
    weights = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        weights.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}/".encode())
        weights.update(_sample(tensor))
    return {"class": kind, "config": config, "weights": weights.hexdigest()}


def difference(there: Mapping[str, Any], here: Mapping[str, Any], name: str) -> str | None:
    """First difference of two descriptions by :func:`describe_encoder`, in words, or None."""
    if there["class"] != here["class"]:
        return f"its {name} is {there['class']} and the configuration's is {here['class']}"
    for key in sorted(there["config"].keys() | here["config"].keys()):
        values = [_short(side["config"][key]) if key in side["config"] else "absent" for side in (there, here)]
        if there["config"].get(key) != here["config"].get(key) or "absent" in values:
            return f"{key} of its {name} is {values[0]} and the configuration's is {values[1]}"
    return None if there["weights"] == here["weights"] else f"its {name} had other weights"


def _settings(config: Any) -> dict[str, Any]:
    """A configuration of diffusers or transformers as JSON has it; nothing for anything else."""
    if hasattr(config, "to_diff_dict"):  # what differs from the defaults, which grow with every version
        config = config.to_diff_dict()
    if not isinstance(config, Mapping):
        return {}
    kept = {
        name: value
        for name, value in config.items()
        if not name.startswith("_")
        and name != "transformers_version"
        and not (isinstance(value, str | Path) and value and os.path.exists(value))
    }
    return json.loads(json.dumps(kept, sort_keys=True, default=str))


def _sample(tensor: Tensor) -> bytes:
    if tensor.numel() == 0 or tensor.is_meta:
        return b""
    count = tensor.numel()
    index = torch.linspace(0, count - 1, min(count, _SAMPLED), dtype=torch.float64).long()
    values = tensor.detach().reshape(-1)[index.to(tensor.device)]
    return values.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
