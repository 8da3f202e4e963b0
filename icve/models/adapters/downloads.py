"""Where an adapter that a user names lies on this machine: a path, or a repository on the Hub, which is downloaded."""

import re
from pathlib import Path
from typing import Any

from diffusers.utils.hub_utils import _get_model_file

from icve.models.adapters.files import LORA_FILE, PEFT_FILES, SUFFIXES
from icve.models.adapters.settings import CONFIG


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
            if name in PEFT_FILES:
                _get_model_file(str(source), weights_name=CONFIG, subfolder=subfolder, **download)
            return Path(file)
        except OSError as error:
            failure = failure or error
    reason = str(failure).splitlines()[0].rstrip(".")
    raise FileNotFoundError(
        f"There is no adapter at {source}, neither here nor on the Hub ({reason}): give a path, or weight_name as well."
    ) from failure
