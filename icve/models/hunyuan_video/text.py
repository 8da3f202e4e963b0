"""HunyuanVideo's text conditioning: hidden states of a LLaMA for every token, and CLIP's pooled text.

Shapes: B batch, L tokens of the longest text in the batch, Dt width of the LLaMA, Dp width of CLIP.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from diffusers.utils.accelerate_utils import apply_forward_hook
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    DynamicCache,
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
)

from icve.data.text_condition import TextCondition
from icve.models.frozen import FrozenComponent, FrozenConfig, Precision, check_folder
from icve.models.weight_files import fill, model_files, read_json
from icve.runtime.transfers import to_device

SKIPPED_LAYERS = 2  # of the LLaMA: hidden_states[-3] is what the third last layer puts out
CLIP_TOKENS = 77
# The released models, for counting where they are not there: LLaVA-LLaMA-3-8B's language model and CLIP-L.
LLAMA: dict[str, Any] = {"vocab_size": 128320, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA |= {"num_attention_heads": 32, "num_key_value_heads": 8}
CLIP: dict[str, Any] = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
CLIP |= {"num_attention_heads": 12}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


class TextConfig(FrozenConfig):
    max_tokens: int


class HunyuanTextEncoder(FrozenComponent, ModelMixin):
    """Third hidden state from the end of a LLaMA, without the final norm, and the pooled text of CLIP-L; frozen.

    The text goes in as it is: ICVE drops the descriptive prompt template of HunyuanVideo T2V. Neither padding nor the
    rest of the batch changes an embedding, as attention is causal and texts are padded on the right.

    Args:
        llama: folder with config.json, safetensors and tokenizer.json of a LLaMA, or of a LLaVA on top of one (of
            which only the language model is read): `text_encoder` of a HunyuanVideo folder. The tokenizer may also be
            beside it, in `tokenizer`.
        clip: the same of CLIP's text model, or of a whole CLIP: `text_encoder_2`, and `tokenizer_2`.
        dtype: precision of the weights and of the computation; None is float16 (the release's), float32 on a CPU.
        max_tokens: longer texts are cut to so many LLaMA tokens.

    The LLaMA's last two layers contribute nothing to that hidden state: they are neither read nor run. Weights are
    read at the first use.

    Raises:
        FileNotFoundError: a folder, its config.json, weights or tokenizer are not there.
        ValueError: it holds another model or a damaged file, or an argument is out of range.
    """

    config: TextConfig
    FOLDERS = ("llama", "clip")

    @register_to_config
    def __init__(
        self,
        llama: str,
        clip: str,
        dtype: Precision | None = None,
        max_tokens: int = 256,
    ):
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"max_tokens of HunyuanTextEncoder must be at least 1, got {max_tokens}.")
        owner = "HunyuanTextEncoder.llama"
        hint = "the folder with the LLaMA's config.json, safetensors and tokenizer.json, `text_encoder` of HunyuanVideo"
        config = check_folder(llama, owner, ["llama", "llava"], hint)
        config = config.get("text_config", config)
        if config.get("model_type", "llama") != "llama":
            raise ValueError(f"{owner}: the language model in '{llama}' is a {config['model_type']}; give {hint}.")
        if config.get("num_hidden_layers", 32) < SKIPPED_LAYERS:
            raise ValueError(f"{owner}: the LLaMA in '{llama}' has no third hidden state from the end; give {hint}.")
        self.text_width: int = config.get("hidden_size", 4096)
        hint = "the folder with CLIP-L's config.json, safetensors and tokenizer, `text_encoder_2` of HunyuanVideo"
        check_folder(clip, "HunyuanTextEncoder.clip", ["clip_text_model", "clip"], hint)
        self.begin(dtype, llama=llama, clip=clip)
        self._tokenizers = {name: self._read_tokenizer(name) for name in self.FOLDERS}

    @classmethod
    def count_parameters(cls, arguments: Mapping[str, Any]) -> int:
        """Of the weights that these arguments name, from their configurations; the release's where there are none."""
        return sum(parameter.numel() for model in _empty_models(arguments) for parameter in model.parameters())

    @classmethod
    def count_flops(cls, arguments: Mapping[str, Any], tokens: int) -> int:
        """Of embedding a text of so many tokens: two for every weight that a token meets, without attention."""
        lengths = (tokens, min(tokens, CLIP_TOKENS))
        return sum(
            2 * length * sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Linear))
            for model, length in zip(_empty_models(arguments), lengths, strict=True)
        )

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """`language_model`, the LLaMA without its last layers and norm, and `pooled_model`, CLIP's."""
        folders = {name: Path(self.config[name]) for name in self.FOLDERS}
        # check_folder has seen that they are these.
        llama = cast(LlamaConfig, _text_config(folders["llama"]))
        clip = cast(CLIPTextConfig, _text_config(folders["clip"]))
        llama.num_hidden_layers -= SKIPPED_LAYERS
        with init_empty_weights(include_buffers=False):
            language_model, pooled_model = LlamaModel(llama), CLIPTextModel(clip)
        language_model.register_module("norm", nn.Identity())
        fill(language_model, folders["llama"], "embed_tokens.weight", dtype, device)
        fill(pooled_model, folders["clip"], "embeddings.token_embedding.weight", dtype, device)
        return {"language_model": language_model, "pooled_model": pooled_model}

    def files(self, name: str) -> list[Path]:
        tokenizer = [self._tokenizer_folder(name) / file for file in TOKENIZER_FILES]
        return [*model_files(Path(self.config[name])), *(file for file in tokenizer if file.is_file())]

    def _tokenizer_folder(self, name: str) -> Path:
        folder = Path(self.config[name])
        beside = folder.parent / {"llama": "tokenizer", "clip": "tokenizer_2"}[name]
        for place in (folder, beside):
            if (place / "tokenizer.json").is_file() or (name == "clip" and (place / "merges.txt").is_file()):
                return place
        raise FileNotFoundError(
            f"HunyuanTextEncoder.{name}: there is no tokenizer in '{folder}' or '{beside}'; put the tokenizer.json "
            "that belongs to the model there."
        )

    def _read_tokenizer(self, name: str) -> Tokenizer:
        folder = self._tokenizer_folder(name)
        # tokenizer.json is the tokenizer itself. transformers' classes rebuild it from its vocabulary instead, and
        # LlamaTokenizer, which HunyuanVideo's folders name, then splits LLaMA-3's bytes wrongly.
        file = folder / "tokenizer.json"
        if file.is_file():
            try:
                tokenizer = Tokenizer.from_file(str(file))
            except Exception as error:  # the library raises nothing more special
                raise ValueError(
                    f"HunyuanTextEncoder.{name}: '{file}' is no whole tokenizer ({error}); copy or download it again."
                ) from error
        else:  # diffusers saves CLIP's as vocabulary and merges
            tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.config.max_tokens if name == "llama" else CLIP_TOKENS)
        return tokenizer

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, texts: list[str]) -> TextCondition:
        """Embed texts.

        Args:
            texts: B texts; "" is valid.

        Returns:
            embeddings (B, L, Dt), with "pooled" (B, Dp), on the encoder's device and in its precision; the mask on the
            host.

        Raises:
            ValueError: if `texts` is a single string or empty.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError("HunyuanTextEncoder.encode needs a list of at least one string.")
        device = self.execution_device()
        self.prepare(device)
        with torch.autocast(device.type, enabled=False):
            ids, mask = self._tokens("llama", texts, device)
            # Causal, hence without a mask: no token attends to the padding on its right. Without a cache, empty as it
            # is, the library would ask the device whether several texts are packed into one.
            hidden = self.language_model(input_ids=ids, past_key_values=DynamicCache()).last_hidden_state
            ids, _ = self._tokens("clip", texts, device)
            pooled = self.pooled_model(input_ids=ids).pooler_output
        padding = to_device(~mask, device)[..., None]
        return TextCondition(hidden.masked_fill(padding, 0), mask, {"pooled": pooled})

    def _tokens(self, name: str, texts: list[str], device: torch.device) -> tuple[Tensor, Tensor]:
        """Ids (B, L) on the device and mask (B, L) on the host, of texts padded with their last token."""
        rows = [encoding.ids for encoding in self._tokenizers[name].encode_batch(list(texts))]
        rows = [row or [0] for row in rows]  # a tokenizer that begins no text makes nothing of ""
        length = max(map(len, rows))
        ids = torch.tensor([row + row[-1:] * (length - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
        return to_device(ids, device), mask


def _empty_models(arguments: Mapping[str, Any]) -> tuple[LlamaModel, CLIPTextModel]:
    """The models that these arguments name, on the meta device; the release's where their folders are not there."""
    llama = LlamaConfig(**_stored_config(arguments["llama"], LLAMA))
    llama.num_hidden_layers -= SKIPPED_LAYERS
    clip = CLIPTextConfig(**_stored_config(arguments["clip"], CLIP))
    with torch.device("meta"):
        return LlamaModel(llama), CLIPTextModel(clip)


def _stored_config(folder: str, released: dict[str, Any]) -> dict[str, Any]:
    file = Path(folder).expanduser() / "config.json"
    config = read_json(file) if file.is_file() else released
    return dict(config.get("text_config", config))  # of a whole LLaVA or CLIP, the part that reads text


def _text_config(folder: Path) -> PretrainedConfig:
    """The library's configuration of a text model, or of the text part of a model of images and text."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return getattr(config, "text_config", config)
