"""A simulated accelerator, `torch.device("simacc")`, for a PyTorch without one: host memory that counts as a device.

    enable()                     # compiles simacc.cpp the first time, half a minute of one core
    with watch() as seen:        # every wait for the device and every copy, with the lines that caused it
        step()
    print(seen.table())

It dispatches, differentiates, autocasts and pins memory as CUDA does, refuses tensors of two devices in one operator,
and reports what CUDA would wait for. It does nothing asynchronously, so that a race is listed (a copy that does not
block) and never provoked, and has no kernels, memory or compiler of its own. `device.type == "cuda"` is False. It stays
registered for the rest of the process: see `test_accelerator.py`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("simacc.cpp")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
# A blocking copy, or one from memory that the device cannot read by itself, waits for all work before it.
WAITS = ("sync", "d2h", "h2d", "h2d-pinned-blocking", "d2h-pinned-blocking", "d2h-nonblocking-pageable")

Frame = tuple[str, int, str]  # file, line and function
_Callback = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64)
_watches: list[Watch] = []


def build() -> Path:
    """The shared library for this PyTorch, from a cache by the content of its source, or compiled now."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "icve-tests"
    library = cache / f"simacc-{key}.so"
    if library.exists():
        return library
    if COMPILER is None:
        raise FileNotFoundError("There is no C++ compiler: install g++, or name one with the variable CXX.")
    cache.mkdir(parents=True, exist_ok=True)
    root = Path(torch.__file__).parent
    command = [COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", "-w"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [f"-I{root / 'include'}", f"-I{root / 'include/torch/csrc/api/include'}", str(SOURCE)]
    command += [f"-L{root / 'lib'}", "-ltorch_cpu", "-lc10", "-ltorch", f"-Wl,-rpath,{root / 'lib'}"]
    with tempfile.TemporaryDirectory(dir=cache) as folder:  # another process may be at it too
        part = Path(folder) / library.name
        subprocess.run([*command, "-o", str(part)], check=True)
        part.replace(library)
    return library


@functools.cache
def enable() -> torch.device:
    """Register the device, for good."""
    torch.utils.rename_privateuse1_backend("simacc")
    path = build()
    torch.ops.load_library(str(path))
    library = ctypes.CDLL(str(path))
    torch._register_device_module("simacc", _device_module())
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
    library.kept = _Callback(_report)  # Python must not collect it
    library.simacc_callback(library.kept)
    _Loaded.library = library
    _patch_safetensors()
    return torch.device("simacc", 0)


class _Loaded:
    library: ctypes.CDLL


def _patch_safetensors() -> None:
    """safetensors knows a fixed list of devices: let it read to the host, and move. Before others import it by name."""
    import safetensors
    import safetensors.torch

    plain = safetensors.safe_open

    class SafeOpen:
        def __init__(self, filename, framework, device="cpu", **options):
            self.device = torch.device(device) if str(device).startswith("simacc") else None
            self.file = plain(filename, framework=framework, device="cpu" if self.device else device, **options)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def get_tensor(self, name):
            tensor = self.file.get_tensor(name)
            return tensor if self.device is None else tensor.to(self.device)

        def __getattr__(self, name):
            return getattr(self.file, name)

    safetensors.safe_open = safetensors.torch.safe_open = SafeOpen


def _device_module() -> types.ModuleType:
    """`torch.simacc`, what libraries ask of a device's module."""
    generator = functools.cache(lambda: torch.Generator("simacc"))
    zero = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved", "current_device")
    nothing = ("set_device", "empty_cache", "reset_peak_memory_stats")
    module = types.ModuleType("torch.simacc")
    answers = {
        **{name: lambda *_: 0 for name in zero},
        **{name: lambda *_: None for name in nothing},
        **{name: lambda: True for name in ("is_available", "is_initialized", "is_bf16_supported")},
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "get_device_name": lambda *_: "simulated accelerator",
        "synchronize": lambda *_: _report(b"sync", b"synchronize", 0),
        "mem_get_info": lambda *_: (1 << 34, 1 << 34),
        "memory_stats": lambda *_: {},
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "manual_seed": lambda seed: generator().manual_seed(seed),
        "manual_seed_all": lambda seed: generator().manual_seed(seed),
        "get_rng_state": lambda *_: generator().get_state(),
        "set_rng_state": lambda state, *_: generator().set_state(state),
        "get_rng_state_all": lambda: [generator().get_state()],
        "set_rng_state_all": lambda states: generator().set_state(states[0]),
        "Stream": torch.Stream,
        "Event": torch.Event,
        "current_stream": lambda *_: torch.accelerator.current_stream(),
        "default_stream": lambda *_: torch.accelerator.current_stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "device": lambda _: contextlib.nullcontext(),
    }
    vars(module).update(answers)
    return module


@dataclass(frozen=True)
class Event:
    """A wait or a copy.

    Attributes:
        kind: "sync" (item, bool, nonzero ...); "h2d" and "d2h", copies that block, from or to memory that is not
            pinned; the same with "-pinned-blocking"; "-async", which do not; "-nonblocking-pageable", which were asked
            not to block and go through memory that is not pinned.
        operator: of PyTorch.
        size: bytes copied.
        frames: of the stack, innermost first.
    """

    kind: str
    operator: str
    size: int
    frames: tuple[Frame, ...]

    @property
    def place(self) -> str:
        """The innermost line of icve, and what it called; of a stack without one, the innermost frames."""
        own = [i for i, (file, *_) in enumerate(self.frames) if "/icve/" in file]
        if not own:
            return " < ".join(map(_short, self.frames[:3]))
        called = "" if own[0] == 0 else f" via {_short(self.frames[own[0] - 1])}"
        return _short(self.frames[own[0]]) + called


class Watch:
    """What was reported while it was open."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def waits(self) -> list[Event]:
        """Where the host waited for the device."""
        return waits(self.events)


def waits(events: Iterable[Event]) -> list[Event]:
    """Those of the events in which the host waits for the device."""
    return [event for event in events if event.kind in WAITS]


def table(events: Iterable[Event]) -> str:
    """Events counted by kind and place, a line each."""
    counts = Counter((event.place, event.kind, event.operator) for event in events)
    return "\n".join(f"{n:4d} {kind} {operator} {place}" for (place, kind, operator), n in sorted(counts.items()))


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Take down every wait for the device and every copy."""
    seen = Watch()
    _watches.append(seen)
    try:
        yield seen
    finally:
        _watches.remove(seen)


def _report(kind: bytes, operator: bytes, size: int) -> None:
    """Called by the library, in whichever thread it happened."""
    if not _watches or (kind != b"sync" and not size):  # nothing is copied of an empty tensor
        return
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append((frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    for seen in _watches:
        seen.events.append(Event(kind.decode(), operator.decode().removeprefix("aten::"), size, tuple(frames)))


def _short(frame: Frame) -> str:
    file, line, name = frame
    for mark in ("/site-packages/", "/icve/"):
        if mark in file:
            file = mark.strip("/") + "/" + file.rsplit(mark, 1)[1] if mark == "/icve/" else file.split(mark, 1)[1]
            break
    return f"{file}:{line} {name}"
