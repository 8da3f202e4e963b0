"""Wan's text encoder: reference tensors, cleaning, padding."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, UMT5Config, UMT5EncoderModel

from icve.models.wan.key_names import text_to_transformers
from icve.models.wan.text import WanTextEncoder, cleaned
from icve.models.wan.tiny import write_tiny

TEXTS = ["make the car red", "", "remove the second person from the left, and what he carries"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    write_tiny(folder)
    return folder


def test_hidden_states_are_the_reference(shared_data):
    where = shared_data / "golden_wan" / "golden_umt5"
    tensors = {key: value.clone() for key, value in load_file(where.with_suffix(".safetensors")).items()}
    state = {key.removeprefix("state_dict."): value for key, value in tensors.items() if key.startswith("state_dict.")}
    model = UMT5EncoderModel(UMT5Config(**json.loads(where.with_suffix(".json").read_text())["config_tiny"])).eval()
    state = text_to_transformers(state)
    model.load_state_dict(state | {"encoder.embed_tokens.weight": state["shared.weight"]})
    mask = tensors["input.mask"]
    with torch.no_grad():
        hidden = model(tensors["input.ids"], mask).last_hidden_state
    valid = mask.bool()
    torch.testing.assert_close(hidden[valid], tensors["output"][valid], atol=2e-5, rtol=1e-4)


def test_embeddings_are_those_of_texts_padded_to_512(folder):
    condition = WanTextEncoder(str(folder / "text_encoder")).encode(TEXTS)
    tokens = AutoTokenizer.from_pretrained(folder / "tokenizer")(
        TEXTS, padding="max_length", max_length=512, return_tensors="pt"
    )
    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        hidden = model(tokens.input_ids, tokens.attention_mask).last_hidden_state
    assert condition.mask.sum(1).tolist() == tokens.attention_mask.sum(1).tolist() == [17, 1, 60]
    assert condition.mask.device.type == "cpu"
    for n, length in enumerate(condition.mask.sum(1).tolist()):
        torch.testing.assert_close(condition.embeddings[n, :length], hidden[n, :length], atol=1e-5, rtol=1e-4)
        assert not condition.embeddings[n, length:].any()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  make \n it\tred ", "make it red"),
        ("a &amp;lt;b&gt;", "a <b>"),
        ("schÃ¶n", "schön"),
        ("", ""),
    ],
)
def test_texts_are_cleaned_as_in_wans_training(text, expected):
    assert cleaned(text) == expected


def test_long_texts_keep_their_end_mark(folder):
    encoder = WanTextEncoder(str(folder / "text_encoder"), max_tokens=6)
    assert encoder.encode(["far too long"]).mask.shape == (1, 6)
    assert encoder._tokenizer.encode("far too long").ids[-1] == 1


def test_sizes_are_counted_without_weights(folder):
    arguments = {"pretrained": str(folder / "text_encoder")}
    model = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    assert WanTextEncoder.count_parameters(arguments) == sum(p.numel() for p in model.parameters())
    assert WanTextEncoder.count_flops(arguments, 8) == 2 * WanTextEncoder.count_flops(arguments, 4) > 0
    released = WanTextEncoder.count_parameters({"pretrained": "absent"})
    assert released == 5_680_910_336  # models_t5_umt5-xxl-enc-bf16.pth: 11.36 GB in 16 bits


def test_wrong_folders_and_arguments_are_one_sentence(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; give the folder with UMT5's"):
        WanTextEncoder(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="holds a AutoencoderKLWan, not a umt5"):
        WanTextEncoder(str(folder / "vae"))
    with pytest.raises(ValueError, match="max_tokens"):
        WanTextEncoder(str(folder / "text_encoder"), max_tokens=0)
    with pytest.raises(ValueError, match="needs a list of at least one string"):
        WanTextEncoder(str(folder / "text_encoder")).encode("red")
