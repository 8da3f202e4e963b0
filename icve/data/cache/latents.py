"""The latent cache: what the frozen codec and text encoder make of a manifest's pairs, kept on disk.

A cache is a folder:

    latents.json                    format, precision, and which codec and text encoder made it
    no_instruction.safetensors      embedding of "", which takes the place of a dropped instruction
    text-<hash>.safetensors         embedding of an instruction that a transform gives, whatever the pair
    240x384x77/1of8-<hash>.safetensors    shards of one bucket: latents and texts of some dozens of pairs
    rejected/1of8.jsonl             rows that could not be encoded, with their reasons

Shards are safetensors rather than Parquet because training reads single pairs at random: a tensor is mapped from the
file at its offset without a decoder or a copy of its row group, in its own dtype (Parquet knows no bfloat16) and shape.
A shard's records (one per pair, JSON) are in its header, so that tensors and what they are appear on disk in the same
rename, and never change afterwards. A pair that was encoded again is in a newer shard; the newest valid one is used.

Shapes: C latent channels, T latent frames of h x w, L text tokens of width Dt. Of every pair are kept
source, target  latents (C, T, h, w)        text    embeddings (1, L, Dt) of the instruction, without padding
region          bool (1, T, h, w), latent positions that its edit mask touches, if it has one
reference       latents (C, 1, h, w) of the picture it takes looks from, if it has one
text.NAME       (1, ...), what else the text encoder gives (text.pooled, for one); names are in latents.json
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from icve.data.buckets import Bucket
from icve.data.cache.encoder_identity import describe_encoder, difference
from icve.data.cache.shards import open_shard, read_tensors
from icve.data.identity import FileIdentity, json_digest
from icve.data.selection import Pair
from icve.data.text_condition import TextCondition
from icve.runtime.atomic import whole_file
from icve.runtime.locks import AlreadyLocked, locked
from icve.runtime.printable import json_line, json_lines
from icve.runtime.storage.remote_path import RemoteError, RemotePath, as_path

Precision = Literal["bfloat16", "float32"]

FORMAT = 3  # raised when the layout changes, or when decoding or resizing gives other pixels
_INFO, _NO_INSTRUCTION, _RECORDS = "latents.json", "no_instruction.safetensors", "icve.records"
_OPEN_SHARDS = 32  # per process


class LatentsError(ValueError):
    """A pair that the cache cannot give, in one sentence."""


def request_of(pair: Pair, bucket: Bucket, fps: float | None, read: Callable) -> str:
    """What is asked of the cache for a row, apart from its files: canonical JSON, equal only for the same clips."""
    # Caches from before repeated the frames of clips slower than that.
    resampled = {} if fps is None else {"frames shown": "once"}
    return json.dumps(
        {
            "bucket": list(bucket),
            "fps": fps,
            "instruction": pair.instruction,
            "mask": pair.mask is not None,
            **({"reference": True} if pair.reference is not None else {}),
            "reader": f"{read.__module__}.{read.__qualname__}",
            "source_frames": pair.source_frames,
            "source_start": pair.source_start,
            "target_frames": pair.target_frames,
            "target_start": pair.target_start,
        }
        | resampled
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One pair in the cache, or one row that was rejected (``reason``).

    ``key`` names its tensors: a digest of the files' content, of the frames read and the picture they were brought to,
    of the instruction and of the encoders. ``video`` is width, height, frames and fps of the source file. ``encoded``
    is the time in nanoseconds.
    """

    id: str
    request: str
    files: dict[str, FileIdentity]
    key: str = ""
    video: tuple[int, int, int, float] | None = None
    encoded: int = 0
    reason: str | None = None
    shard: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything but the shard it is in."""
        values = {name: getattr(self, name) for name in ("id", "request", "key", "video", "encoded", "reason")}
        return values | {"files": {role: asdict(file) for role, file in self.files.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any], shard: Path | None = None) -> Record:
        """Inverse of :meth:`to_json`."""
        files = {role: FileIdentity(**file) for role, file in values["files"].items()}
        video = None if values["video"] is None else tuple(values["video"])
        return cls(**{**values, "files": files, "video": video, "shard": shard})

    def difference(self, root: Path, pair: Pair) -> str | None:
        """Why this is not the row's pair any more, by its files, or None if it is."""
        paths = {
            "source": pair.source,
            "target": pair.target,
            "mask": pair.mask or "",
            "reference": pair.reference or "",
        }
        found = (file.difference(root, paths[role]) for role, file in self.files.items())
        return next((reason for reason in found if reason), None)


class LatentCache:
    """A cache that exists, open for reading.

    Args:
        folder: of a cache made by :meth:`create` (`icve encode`), or its URL.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it was written by another version.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = as_path(folder)
        try:
            self.info = json.loads((self.folder / _INFO).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(
                f"There is no latent cache in {self.folder}; make it with: "
                f"icve encode -c CONFIG.yaml --output {self.folder}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{self.folder / _INFO} is damaged ({error}); encode into another folder.") from error
        if self.info.get("format") != FORMAT:
            raise ValueError(
                f"The latent cache {self.folder} has format {self.info.get('format')}, this version reads {FORMAT}: "
                "encode again, into another folder, with: icve encode -c CONFIG.yaml --output FOLDER."
            )
        self._open: OrderedDict[Path, Any] = OrderedDict()

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike,
        codec: nn.Module,
        text_encoder: nn.Module,
        precision: Precision,
        no_instruction: Callable[[], TextCondition],
    ) -> LatentCache:
        """Open a cache to add to it; a folder that holds none becomes one.

        Args:
            precision: of the tensors on disk.
            no_instruction: encodes "".

        Raises:
            ValueError: the cache that is there has another precision or was made with other encoders.
        """
        folder = as_path(folder)
        if not (folder / _INFO).exists():
            tensors = _save_text(folder / _NO_INSTRUCTION, no_instruction(), getattr(torch, precision))
            # The last file of a new cache. Of several processes the last one rules, and the check below follows.
            with whole_file(folder / _INFO) as file:
                info = _describe(codec, text_encoder) | {"precision": precision, "text": list(tensors)}
                file.write_text(json.dumps(info), encoding="utf-8")
        cache = cls(folder)
        cache.check_encoders(codec, text_encoder)
        if cache.info["precision"] != precision:
            raise ValueError(
                f"The latent cache {folder} holds {cache.info['precision']}, not {precision}: keep to that or encode "
                "into another folder."
            )
        return cache

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents and embeddings on disk."""
        return getattr(torch, self.info["precision"])

    @property
    def encoders(self) -> str:
        """Digest of the codec and text encoder."""
        return json_digest([self.info["codec"], self.info["text_encoder"]])

    def check_encoders(self, codec: nn.Module, text_encoder: nn.Module) -> None:
        """Raise ValueError, with the first difference, unless these made the cache."""
        here = _describe(codec, text_encoder)
        for name, shown in (("codec", "codec"), ("text_encoder", "text encoder")):
            if reason := difference(self.info[name], here[name], shown):
                raise ValueError(
                    f"The latent cache {self.folder} was made with another encoder: {reason}. Configure the encoder "
                    "that made it, or encode into another folder: icve encode -c CONFIG.yaml --output FOLDER."
                )

    def no_instruction(self) -> TextCondition:
        """Of an empty instruction, B = 1."""
        return _load_text(self.folder / _NO_INSTRUCTION)

    def add_texts(self, texts: Iterable[str], encode: Callable[[str], TextCondition]) -> None:
        """Encode instructions that no pair needs to have, unless they are there."""
        for text in texts:
            if not (file := self._text_file(text)).exists():
                _save_text(file, encode(text), self.dtype)

    def texts(self, texts: Iterable[str]) -> dict[str, TextCondition]:
        """Conditions of such instructions, B = 1. Raises ValueError where one is not there, or damaged."""
        known = {}
        for text in texts:
            if not (file := self._text_file(text)).exists():
                raise ValueError(
                    f"The latent cache {self.folder} lacks the instruction {text!r} of a transform; add it with: "
                    f"icve encode -c CONFIG.yaml --output {self.folder}"
                )
            known[text] = _load_text(file)
        return known

    def _text_file(self, text: str) -> Path:
        return self.folder / f"text-{json_digest(text)}.safetensors"

    def records(self) -> Iterator[Record]:
        """Every pair in the cache and every rejected row, in no particular order.

        Raises:
            ValueError: a file is damaged.
        """
        for file in (*sorted(self.folder.glob("*/*.safetensors")), *sorted((self.folder / "rejected").glob("*.jsonl"))):
            if file.name[0] != ".":
                yield from self.records_in(file)

    def records_in(self, file: Path) -> Iterator[Record]:
        """Those of one shard, or of one file of rejected rows. Raises ValueError: it is damaged."""
        if file.suffix == ".jsonl":
            yield from map(Record.from_json, map(json.loads, json_lines(file)))
            return
        try:
            with open_shard(file) as shard:
                records = json.loads(shard.metadata()[_RECORDS])
            yield from (Record.from_json(values, file) for values in records)
        except RemoteError:
            raise
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise _damaged(file, error) from error

    def read(self, record: Record) -> dict[str, Any]:
        """Of a pair: ``source`` and ``target`` (C, T, h, w), ``text`` (B = 1), and ``region`` and ``reference`` where
        its row has a mask or one.

        Raises:
            LatentsError: its shard is gone or damaged.
        """
        if record.shard is None:
            raise LatentsError(f"{record.id} was not encoded: {record.reason}")
        try:
            shard = self._shard(record.shard)
            own = [role for role, of in (("region", "mask"), ("reference", "reference")) if of in record.files]
            videos = ("source", "target", *own)
            names = {f"{record.key}.{role}": role for role in (*videos, *self.info["text"])}
            tensors = {names[name]: tensor for name, tensor in read_tensors(shard, list(names)).items()}
            text = TextCondition.from_tensors(tensors, "text")
            return {role: tensors[role] for role in videos} | {"text": text}
        except RemoteError:
            raise
        except (OSError, SafetensorError) as error:
            raise LatentsError(str(_damaged(record.shard, error))) from error

    def _shard(self, file: Path) -> Any:
        if file not in self._open:
            self._open[file] = open_shard(file)
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(file)
        return self._open[file]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}  # open files stay in their process


class ShardWriter:
    """Adds pairs to a cache, shard by shard: what is on disk is complete at any moment.

    Leaving the ``with`` block, also through an error, writes what was added last.

    Args:
        cache: to add to.
        part: (i, n) of this process; it owns the shards named after it.
        pairs, size: a shard is written when it has so many pairs or bytes; that much is lost by a kill.

    Raises:
        ValueError: another process works on this part (on entering; not noticed where the cache is remote).
    """

    def __init__(self, cache: LatentCache, part: tuple[int, int], pairs: int = 64, size: int = 256 << 20) -> None:
        self.cache, self.name = cache, f"{part[0]}of{part[1]}"
        self.pairs, self.size = pairs, size
        self.bytes = 0  # written so far
        self._records: list[Record] = []
        self._tensors: dict[str, Tensor] = {}
        self._rejected: list[Record] = []
        self._bucket = ""
        self._lock = ExitStack()

    def __enter__(self) -> ShardWriter:
        if isinstance(self.cache.folder, RemotePath):
            return self  # a store has no locks: each part's files have its name, and appear whole
        try:
            self._lock.enter_context(locked(self.cache.folder / f".{self.name}.lock", wait=False))
        except AlreadyLocked as error:
            who = f" ({error.holder})" if error.holder else ""
            raise ValueError(
                f"Another process{who} encodes this part into {self.cache.folder}: give every process its own --shard."
            ) from error
        for rest in self.cache.folder.glob(f"*/.{self.name}[-.]*.tmp"):
            rest.unlink(missing_ok=True)  # of a killed run
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.flush()
        finally:
            self._lock.close()

    def add(self, record: Record, bucket: Bucket, tensors: dict[str, Tensor]) -> None:
        """Add a pair; tensors by name as above, floating ones are stored in the cache's precision."""
        name = "x".join(map(str, bucket))
        if name != self._bucket:
            self.flush()
            self._bucket = name
        for role, tensor in tensors.items():
            dtype = self.cache.dtype if tensor.is_floating_point() else tensor.dtype
            # A copy, because pairs may share a text and safetensors does not store shared memory.
            self._tensors[f"{record.key}.{role}"] = tensor.to("cpu", dtype, copy=True).contiguous()
        self._records.append(record)
        held = sum(tensor.nbytes for tensor in self._tensors.values())
        if len(self._records) >= self.pairs or held >= self.size:
            self.flush()

    def reject(self, record: Record) -> None:
        """Note a row that cannot be encoded."""
        self._rejected.append(record)

    def flush(self) -> None:
        """Write what was added since the last time. Raises ValueError when that is not possible."""
        try:
            self._flush()
        except RemoteError:
            raise
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"The latent cache {self.cache.folder} cannot be written to ({error}); what is in it stays, and the "
                "same command goes on from there."
            ) from error

    def _flush(self) -> None:
        if self._records:
            now = time.time_ns()
            records = [record.to_json() | {"encoded": now} for record in self._records]
            content = json_digest([[record.id, record.request, record.key] for record in self._records])[:16]
            name = f"{self.name}-{content}.safetensors"
            with whole_file(self.cache.folder / self._bucket / name) as file:
                save_file(self._tensors, file, metadata={_RECORDS: json.dumps(records)})
                self.bytes += file.stat().st_size
            self._records, self._tensors = [], {}
        file = self.cache.folder / "rejected" / f"{self.name}.jsonl"
        if self._rejected or file.exists():
            lines = (json_line(record.to_json()) for record in self._rejected)
            with whole_file(file) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")


def _describe(codec: nn.Module, text_encoder: nn.Module) -> dict[str, Any]:
    return {"format": FORMAT, "codec": describe_encoder(codec), "text_encoder": describe_encoder(text_encoder)}


def _save_text(file: Path, text: TextCondition, dtype: torch.dtype) -> dict[str, Tensor]:
    """Write a condition, B = 1, in a precision; returns its tensors by name."""
    tensors = {name: tensor.contiguous() for name, tensor in text.to(dtype=dtype).tensors("text").items()}
    with whole_file(file) as temporary:
        save_file(tensors, temporary)
    return tensors


def _load_text(file: Path) -> TextCondition:
    try:
        with open_shard(file) as shard:
            return TextCondition.from_tensors(read_tensors(shard, list(shard.keys())), "text")
    except RemoteError:
        raise
    except (OSError, SafetensorError, KeyError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(
        f"{file} of the latent cache is missing or damaged ({reason}): remove it and run icve encode again, which "
        "encodes its pairs anew."
    )
