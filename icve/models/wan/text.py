"""Wan's text conditioning: the last hidden states of a UMT5 encoder.

Shapes: B batch, L tokens of the longest text in the batch, Dt width of the encoder.
"""

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ftfy
import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import register_to_config
from diffusers.models.modeling_utils import ModelMixin  # diffusers loads a component whose module names it
from diffusers.utils.accelerate_utils import apply_forward_hook
from tokenizers import Tokenizer
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from icve.data.text_condition import TextCondition
from icve.models.frozen import FrozenComponent, FrozenConfig, Precision, check_folder
from icve.models.weight_files import fill, model_files, read_json
from icve.runtime.transfers import to_device

# The released model's sizes: UMT5-XXL.
UMT5: dict[str, Any] = {"vocab_size": 256384, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24}
UMT5 |= {"num_heads": 64, "feed_forward_proj": "gated-gelu"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "spiece.model")


def cleaned(text: str) -> str:
    """A text as Wan cleans it: broken characters mended, HTML's marks resolved twice, white space as single spaces."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


class TextConfig(FrozenConfig):
    pretrained: str
    max_tokens: int


class WanTextEncoder(FrozenComponent, ModelMixin):
    """Last hidden states of a UMT5 encoder, frozen. Neither padding nor the rest of the batch changes an embedding.

    Args:
        pretrained: folder with config.json, safetensors and tokenizer.json of a UMT5: `text_encoder` of a diffusers Wan
            folder. The tokenizer may also be beside it, in `tokenizer`.
        dtype: precision of the weights and of the computation; None is bfloat16 (the release's; in float16 it would
            overflow), float32 on a CPU.
        max_tokens: longer texts are cut to so many tokens, the end mark included.

    Weights are read at the first use.

    Raises:
        FileNotFoundError: the folder, its config.json, weights or tokenizer are not there.
        ValueError: it holds another model or a damaged file, or an argument is out of range.
    """

    config: TextConfig
    FOLDERS = ("pretrained",)
    PRECISION = "bfloat16"

    @register_to_config
    def __init__(self, pretrained: str, dtype: Precision | None = None, max_tokens: int = 512):
        super().__init__()
        if max_tokens < 1:
            raise ValueError(f"max_tokens of WanTextEncoder must be at least 1, got {max_tokens}.")
        hint = "the folder with UMT5's config.json, safetensors and tokenizer.json, `text_encoder` of Wan"
        config = check_folder(pretrained, "WanTextEncoder.pretrained", ["umt5"], hint)
        self.text_width: int = config.get("d_model", UMT5["d_model"])
        self.begin(dtype, pretrained=pretrained)
        self._tokenizer = self._read_tokenizer()

    @classmethod
    def count_parameters(cls, arguments: Mapping[str, Any]) -> int:
        """Of the weights that these arguments name, from their configuration; the release's where there is none."""
        return sum(parameter.numel() for parameter in _empty_model(arguments).parameters())

    @classmethod
    def count_flops(cls, arguments: Mapping[str, Any], tokens: int) -> int:
        """Of embedding a text of so many tokens: two for every weight that a token meets, without attention."""
        layers = (part for part in _empty_model(arguments).modules() if isinstance(part, nn.Linear))
        return 2 * tokens * sum(layer.weight.numel() for layer in layers)

    def read(self, dtype: torch.dtype, device: torch.device) -> dict[str, nn.Module]:
        """`encoder`, the UMT5."""
        folder = Path(self.config.pretrained)
        with init_empty_weights(include_buffers=False):
            encoder: Any = UMT5EncoderModel(UMT5Config(**read_json(folder / "config.json")))
        encoder.encoder.embed_tokens = nn.Identity()  # the same as `shared`, of which files may hold one
        fill(encoder, folder, "encoder.final_layer_norm.weight", dtype, device)
        encoder.encoder.embed_tokens = encoder.shared
        return {"encoder": encoder}

    def files(self, name: str) -> list[Path]:
        tokenizer = [self._tokenizer_folder() / file for file in TOKENIZER_FILES]
        return [*model_files(Path(self.config.pretrained)), *(file for file in tokenizer if file.is_file())]

    def _tokenizer_folder(self) -> Path:
        folder = Path(self.config.pretrained)
        for place in (folder, beside := folder.parent / "tokenizer"):
            if (place / "tokenizer.json").is_file():
                return place
        raise FileNotFoundError(
            f"WanTextEncoder.pretrained: there is no tokenizer.json in '{folder}' or '{beside}'; put UMT5's there."
        )

    def _read_tokenizer(self) -> Tokenizer:
        file = self._tokenizer_folder() / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more special
            raise ValueError(
                f"WanTextEncoder.pretrained: '{file}' is no whole tokenizer ({error}); copy or download it again."
            ) from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.config.max_tokens)
        return tokenizer

    @apply_forward_hook
    @torch.no_grad()
    def encode(self, texts: list[str]) -> TextCondition:
        """Embed texts, cleaned.

        Args:
            texts: B texts; "" is valid.

        Returns:
            embeddings (B, L, Dt) on the encoder's device and in its precision, zero beyond a text; the mask on the
            host.

        Raises:
            ValueError: if `texts` is a single string or empty.
        """
        if isinstance(texts, str) or not texts:
            raise ValueError("WanTextEncoder.encode needs a list of at least one string.")
        device = self.execution_device()
        self.prepare(device)
        rows = [encoding.ids or [0] for encoding in self._tokenizer.encode_batch([cleaned(text) for text in texts])]
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device="cpu")
        mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], device="cpu")
        padding = to_device(~mask, device)
        # Added to the logits: of a mask of two dimensions transformers reads on the host whether it masks anything.
        dtype = self.encoder.dtype
        bias = torch.zeros(padding.shape, dtype=dtype, device=device).masked_fill_(padding, torch.finfo(dtype).min)
        with torch.autocast(device.type, enabled=False):
            hidden = self.encoder(to_device(ids, device), bias[:, None, None]).last_hidden_state
        return TextCondition(hidden.masked_fill(padding[..., None], 0), mask)


def _empty_model(arguments: Mapping[str, Any]) -> UMT5EncoderModel:
    """The model that these arguments name, on the meta device; the release's where its folder is not there."""
    file = Path(arguments["pretrained"]).expanduser() / "config.json"
    with torch.device("meta"):
        return UMT5EncoderModel(UMT5Config(**(read_json(file) if file.is_file() else UMT5)))
