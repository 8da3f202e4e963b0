"""Where an adapter that a user names lies on this machine: a path, or a repository on the Hub, which is downloaded."""

import re
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import (
    EntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    _get_model_file,
)

from icve.models.adapters.files import LORA_FILE, PEFT_FILES, SUFFIXES
from icve.models.adapters.settings import CONFIG, FASTVIDEO_CONFIG


def local_adapter(
    source: str | Path, weight_name: str | None = None, subfolder: str | None = None, **download: Any
) -> Path:
    """The file or folder of an adapter.

    Args:
        source: a file, a folder, or OWNER/NAME of a repository on the Hub.
        weight_name, subfolder: which file of a folder or repository.
        **download: how a repository is downloaded: revision, token, cache_dir, force_download, proxies,
            local_files_only, as in diffusers.

    Raises:
        FileNotFoundError: there is none, or the repository cannot be reached.
        TypeError: an argument that is none of these.
    """
    known = {"revision", "token", "cache_dir", "force_download", "proxies", "local_files_only"}
    # diffusers' callers give the latter two; they choose nothing here.
    if unknown := sorted(download.keys() - known - {"use_safetensors", "return_lora_metadata"}):
        raise TypeError(f"load_lora_weights has no argument {unknown[0]!r}.")
    download = {name: value for name, value in download.items() if name in known}
    path = Path(source)
    if path.exists():
        return path if path.is_file() else path / (subfolder or "") / (weight_name or "")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)) or path.suffix in SUFFIXES:
        raise FileNotFoundError(f"There is no adapter at {source}.")
    failure: OSError | None = None
    for name in (weight_name,) if weight_name else (LORA_FILE, *PEFT_FILES):
        try:
            file = _get_model_file(str(source), weights_name=name, subfolder=subfolder, **download)
            if name in (LORA_FILE, *PEFT_FILES):
                settings = FASTVIDEO_CONFIG if name == LORA_FILE else CONFIG
                _download_settings(str(source), settings, subfolder, download)
            return Path(file)
        except OSError as error:
            failure = failure or error
    absent = f"has no file {weight_name}" if weight_name else "has no adapter of a usual name: give weight_name as well"
    reasons = {
        FileNotFoundError: "the Hub cannot be reached or was not asked, and its cache does not hold the file",
        EntryNotFoundError: f"its repository on the Hub {absent}",
        RevisionNotFoundError: "its repository on the Hub has no such revision",
        RepositoryNotFoundError: "the Hub has no such repository, or one that needs your consent and token",
    }
    cause = failure and failure.__context__
    reason = next((text for kind, text in reasons.items() if isinstance(cause, kind)), "the Hub fails")
    raise FileNotFoundError(f"There is no adapter at {source}: it is no path here, and {reason}.") from failure


def _download_settings(repository: str, name: str, subfolder: str | None, download: dict[str, Any]) -> None:
    """Put a repository's settings beside its weights, where it has some."""
    try:
        _get_model_file(repository, weights_name=name, subfolder=subfolder, **download)
    except OSError as error:
        absent = isinstance(error.__context__, EntryNotFoundError)
        # FileNotFoundError: without the Hub nobody knows. Most PEFT folders have settings, and few of the others.
        if not absent or (name == CONFIG and isinstance(error.__context__, FileNotFoundError)):
            raise
