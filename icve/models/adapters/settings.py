"""An adapter's settings: PEFT's adapter_config.json, or the same in a file's header (diffusers), and the scales."""

import json
import math
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from icve.models.families import FAMILIES
from icve.models.weight_files import read_json

CONFIG = "adapter_config.json"
FASTVIDEO_CONFIG = "lora_config.json"
HEADERS = ("lora_adapter_metadata", "lora_config")  # keys of a safetensors header: diffusers', finetrainers'
# These change the weights that an adapter is trained on, or what it computes beyond alpha/rank · B·A.
_CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_NOT_PLAIN = (
    "use_qalora",
    "use_bdlora",
    "kasa_config",
    "monteclora_config",
    "arrow_config",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "modules_to_save",
)
# Other models whose layers have the names of a family's here, some of them its sizes as well.
_OTHER_MODELS = ("flux", "wan", "qwen", "ltx", "stable-diffusion", "lumina", "chroma", "cogvideo", "hidream", "z-image")

Default = TypeVar("Default", bound=float | None)


@dataclass(frozen=True)
class AdapterSettings:
    """What scales an adapter's layers.

    Args:
        where: the file that says so, for messages.
        alpha: of layers that no pattern matches.
        rank: likewise; None where it is not said.
        rslora: scale by alpha/√rank instead of alpha/rank.
        alphas, ranks: (what matches a layer's whole name, value); the first that matches counts.
    """

    where: str
    alpha: float
    rank: float | None = None
    rslora: bool = False
    alphas: tuple[tuple[re.Pattern[str], float], ...] = ()
    ranks: tuple[tuple[re.Pattern[str], float], ...] = ()

    def scale(self, names: Iterable[str], rank: int) -> float:
        """Scale of a layer's B·A.

        Args:
            names: of the layer, with and without the file's prefixes.
            rank: that its matrices have.

        Raises:
            ValueError: the settings give the layer another rank.
        """
        names = list(names)
        expected = _matching(self.ranks, names, self.rank)
        if expected is not None and expected != rank:
            raise ValueError(
                f"has rank {rank} where {self.where} says {expected:g}: take the file that these "
                "settings were saved with"
            )
        alpha = _matching(self.alphas, names, self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def settings_beside(file: Path, name: str = CONFIG) -> AdapterSettings | None:
    """Settings in a JSON file in an adapter's folder; None where there are none.

    Args:
        file: the adapter's.
        name: of PEFT's or FastVideo's settings.

    Raises:
        ValueError: they are damaged, or of another kind of adapter.
    """
    config = file.with_name(name)
    if not config.is_file():
        return None
    values: Any = read_json(config)
    if name == FASTVIDEO_CONFIG:
        values = values.get("lora_params")
        if values is None:  # another program's file of this name
            return None
        values = values.get("transformer", values) if isinstance(values, dict) else values
    return _settings(values, f"'{config}'")


def settings_in_header(header: Mapping[str, str], where: str) -> AdapterSettings | None:
    """Settings in a safetensors header, as diffusers and finetrainers write them; None where there are none.

    Raises:
        ValueError: they are damaged, or of another kind of adapter; or the header says that the file is for another
            model.
    """
    for name in ("modelspec.architecture", "ss_base_model_version"):
        if other := _other_model(header.get(name, "")):
            raise ValueError(f"The adapter {where} belongs to another model: its header says {other!r}.")
    text = next((header[name] for name in HEADERS if name in header), None)
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The settings in the header of {where} are not valid JSON ({error}).") from error
    if isinstance(values, dict):
        ours = {key.removeprefix("transformer."): v for key, v in values.items() if key.startswith("transformer.")}
        values = ours or {key: value for key, value in values.items() if not key.startswith("text_encoder")}
        if not values:
            return None
    return _settings(values, f"the header of {where}")


def _settings(values: Any, where: str) -> AdapterSettings:
    if not isinstance(values, dict):
        raise ValueError(f"The settings in {where} are a {type(values).__name__}, where names and values belong.")
    if str(kind := values.get("peft_type") or "LORA").rpartition(".")[2].upper() != "LORA":
        raise ValueError(f"{_capital(where)} describes a {kind} adapter; only LoRA is read: train one, or merge it.")
    other = "DoRA" if values.get("use_dora") else None
    if name := next((name for name in _NOT_PLAIN if values.get(name)), None):
        other = other or f"a LoRA with {name}"
    if values.get("bias") not in (None, "none"):
        other = other or "a LoRA with trained biases"
    if other:
        raise ValueError(
            f"{_capital(where)} describes {other}; only plain LoRA is read: merge the adapter where it was trained and "
            "load the merged weights, or train a plain LoRA."
        )
    start = values.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise ValueError(
            f"{_capital(where)} says that training started with {start}, which changed the model's own weights too: "
            "save the adapter as a plain LoRA (PEFT: save_pretrained(path_initial_model_for_weight_conversion=...))."
        )
    base = str(values.get("base_model_name_or_path") or "")
    if _other_model(base.rpartition("/")[2]) and not _ours(base):
        raise ValueError(f"The adapter belongs to another model: {where} says that it was trained on {base!r}.")
    alpha, rank = (
        next((values[name] for name in names if values.get(name) is not None), None)
        for names in (("lora_alpha", "alpha"), ("r", "lora_rank", "rank"))
    )
    if alpha is None:
        raise ValueError(
            f"{_capital(where)} has no lora_alpha, so that the adapter's scale is unknown: write it there."
        )
    return AdapterSettings(
        where,
        _number(alpha, "lora_alpha", where),
        None if rank is None else _number(rank, "r", where),
        bool(values.get("use_rslora")),
        _patterns(values, "alpha_pattern", where),
        _patterns(values, "rank_pattern", where),
    )


def _other_model(name: str) -> str | None:
    """The kind of another model that a name begins with."""
    name = name.lower()
    return None if _ours(name) else next((other for other in _OTHER_MODELS if name.startswith(other)), None)


def _ours(name: str) -> bool:
    """Whether a model's name is that of a family's."""
    return any(alias in name.lower() for family in FAMILIES for alias in family.aliases)


def _patterns(values: dict[str, Any], name: str, where: str) -> tuple[tuple[re.Pattern[str], float], ...]:
    patterns = values.get(name) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{name} in {where} is no mapping of layers to numbers.")
    compiled = []
    for pattern, value in patterns.items():
        flags = re.findall(r"^(?:\(\?[aimsux]+\))*", pattern)[0]  # Python takes them at the start only
        try:
            whole = re.compile(rf"{flags}(.*\.)?({pattern.removeprefix(flags)})$")  # PEFT's rule
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{name} in {where} has {pattern!r}, which is no regular expression ({error}).") from error
        compiled.append((whole, _number(value, f"{name} of {pattern!r}", where)))
    return tuple(compiled)


def _number(value: Any, name: str, where: str) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < abs(value) <= sys.float_info.max:  # an int may be larger
        raise ValueError(f"{name} in {where} is {value!r}, where a finite number other than 0 belongs.")
    return value


def _matching(
    patterns: tuple[tuple[re.Pattern[str], float], ...], names: list[str], default: Default
) -> float | Default:
    return next((value for pattern, value in patterns if any(map(pattern.match, names))), default)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
