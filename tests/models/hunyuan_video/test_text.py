"""HunyuanTextEncoder: equal to transformers' models, whatever the padding, from any folder that holds them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaForCausalLM,
    LlamaModel,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from icve.models.hunyuan_video.text import HunyuanTextEncoder
from tests.texts import parts
from tests.tiny_hunyuan import (
    POOLED_DIM,
    TEXT_DIM,
    save_clip_tokenizer,
    save_llama_tokenizer,
    save_tiny_clip,
    save_tiny_hunyuan,
    save_tiny_llama,
)

TEXTS = ["Make the red circle blue, naïve 红 ✓!", "", "remove it", "add a green square on the left of the red circle"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """LLaMA and CLIP, each with its tokenizer in the same folder."""
    base = tmp_path_factory.mktemp("text")
    return {"llama": str(save_tiny_llama(base / "llama")), "clip": str(save_tiny_clip(base / "clip"))}


@pytest.fixture(scope="module")
def encoder(folders) -> HunyuanTextEncoder:
    return HunyuanTextEncoder(**folders)


def llama_reference(model: torch.nn.Module, folder: str, texts: list[str], tokens: int = 256):
    """Hidden states (B, tokens, Dt) and mask as HunyuanVideo computes them: everything padded to the full length."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", pad_token="<|end_of_text|>")
    batch = tokenizer(texts, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    states = model.eval()(**batch, output_hidden_states=True).hidden_states
    assert len(states) == 5  # embeddings and four layers
    return states[-3], batch["attention_mask"].bool()


def clip_reference(model: torch.nn.Module, folder: str, texts: list[str]) -> torch.Tensor:
    batch = CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
    )
    return model.eval()(batch["input_ids"]).pooler_output


# ---- what it computes ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_embeddings_are_the_librarys(encoder, folders):
    embeddings, mask, pooled = parts(encoder.encode(TEXTS))
    expected, valid = llama_reference(LlamaModel.from_pretrained(folders["llama"]), folders["llama"], TEXTS)
    length = int(valid.sum(1).max())
    assert embeddings.shape == (4, length, TEXT_DIM)
    assert torch.equal(mask, valid[:, :length])
    torch.testing.assert_close(embeddings[mask], expected[valid], atol=1e-5, rtol=0)
    assert embeddings[~mask].abs().max() == 0
    assert pooled.shape == (4, POOLED_DIM)
    expected = clip_reference(CLIPTextModel.from_pretrained(folders["clip"]), folders["clip"], TEXTS)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    assert (pooled[0] - pooled[2]).abs().max() > 0.01


@torch.no_grad()
def test_neither_padding_nor_the_batch_matter(encoder):
    together, mask, pooled = parts(encoder.encode(TEXTS))
    for row, text in enumerate(TEXTS):
        alone, mask_alone, pooled_alone = parts(encoder.encode([text]))
        assert mask_alone.all()
        length = alone.shape[1]
        assert mask[row].tolist() == [True] * length + [False] * (mask.shape[1] - length)
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled[row], pooled_alone[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_long_texts_are_cut_at_256_and_77_tokens(encoder, folders):
    long = "make the red circle blue and " * 100
    embeddings, mask, pooled = parts(encoder.encode([long, "remove it"]))
    assert mask.sum(1).tolist()[0] == embeddings.shape[1] == 256
    expected, valid = llama_reference(LlamaModel.from_pretrained(folders["llama"]), folders["llama"], [long])
    assert valid.all()
    torch.testing.assert_close(embeddings[0], expected[0], atol=1e-5, rtol=0)
    expected = clip_reference(CLIPTextModel.from_pretrained(folders["clip"]), folders["clip"], [long])
    torch.testing.assert_close(pooled[:1], expected, atol=1e-5, rtol=0)
    shorter = HunyuanTextEncoder(**folders, max_tokens=9).encode([long]).embeddings
    torch.testing.assert_close(shorter, embeddings[:1, :9], atol=1e-5, rtol=0)


def test_no_template_around_the_text(encoder):
    tokens, mask, _ = parts(encoder.encode(["", "remove it"]))
    assert mask[0].sum() == 1  # the token that begins every text, nothing else
    torch.testing.assert_close(tokens[0, 0], tokens[1, 0], atol=1e-5, rtol=0)


def test_the_empty_text_has_a_token_whatever_the_tokenizer(folders, tmp_path):
    llama = shutil.copytree(folders["llama"], tmp_path / "llama")
    save_llama_tokenizer(llama, begin=False)
    encoder = HunyuanTextEncoder(str(llama), folders["clip"])
    embeddings, mask, _ = parts(encoder.encode([""]))
    assert mask.tolist() == [[True]]
    assert embeddings.abs().max() > 0
    assert encoder.encode(["", "remove it"]).mask[0].tolist().count(True) == 1


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.05)])
@torch.no_grad()
def test_half_precision(encoder, folders, dtype, tolerance):
    half, precision = HunyuanTextEncoder(**folders, dtype=dtype), getattr(torch, dtype)
    embeddings, _, pooled = parts(half.encode(TEXTS))
    assert embeddings.dtype == pooled.dtype == half.dtype == precision
    exact, mask, exact_pooled = parts(encoder.encode(TEXTS))
    assert exact.dtype == torch.float32
    for there, here in ((exact, embeddings), (exact_pooled, pooled)):
        assert 0 < (there - here.float()).norm() < tolerance * there.norm()
    library = LlamaModel.from_pretrained(folders["llama"], dtype=precision)
    expected, valid = llama_reference(library, folders["llama"], TEXTS)
    assert (embeddings[mask].float() - expected[valid].float()).norm() < tolerance * exact.norm()


def test_casting_and_autocast_leave_the_precision(folders):
    encoder = HunyuanTextEncoder(**folders)
    exact = encoder.encode(TEXTS).embeddings
    encoder.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder.encode(TEXTS).embeddings, exact)


def test_no_gradient_and_no_unneeded_layer(encoder):
    embeddings, _, pooled = parts(encoder.encode(["remove it"]))
    assert not embeddings.requires_grad
    assert not pooled.requires_grad
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert len(encoder.language_model.layers) == 2
    assert not any(name.startswith("language_model.norm") for name, _ in encoder.named_parameters())


@pytest.mark.parametrize("texts", ["remove it", []])
def test_what_is_no_list_of_texts_is_refused(encoder, texts):
    with pytest.raises(ValueError, match="list of at least one string"):
        encoder.encode(texts)


# ---- the folders it reads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "load"),
    [("causal", LlamaForCausalLM.from_pretrained), ("llava", LlavaForConditionalGeneration.from_pretrained)],
)
@torch.no_grad()
def test_a_llama_with_a_head_or_inside_a_llava(folders, tmp_path, kind, load):
    folder = str(save_tiny_llama(tmp_path / "llama", kind, seed=3))
    model = load(folder)
    model = model.model.language_model if kind == "llava" else model
    expected, valid = llama_reference(model, folder, TEXTS)
    embeddings, mask, _ = parts(HunyuanTextEncoder(folder, folders["clip"]).encode(TEXTS))
    torch.testing.assert_close(embeddings[mask], expected[valid], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_llava_as_newer_and_older_releases_name_it(folders, tmp_path):
    folder = save_tiny_llama(tmp_path / "llama", "llava", seed=3)
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    before = HunyuanTextEncoder(str(folder), folders["clip"]).encode(TEXTS).embeddings
    assert "language_model.model.embed_tokens.weight" in state
    save_file({key.replace("language_model.model.", "model.language_model."): state[key] for key in state}, file)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_theta"] = config["text_config"].pop("rope_parameters")["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    assert torch.equal(HunyuanTextEncoder(str(folder), folders["clip"]).encode(TEXTS).embeddings, before)


@torch.no_grad()
def test_a_whole_clip(folders, tmp_path):
    folder = str(save_tiny_clip(tmp_path / "clip", "whole", seed=3))
    expected = clip_reference(CLIPModel.from_pretrained(folder).text_model, folder, TEXTS)
    pooled = HunyuanTextEncoder(folders["llama"], folder).encode(TEXTS).extras["pooled"]
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("eos_token_id", [2, 575])
@torch.no_grad()
def test_the_end_of_text_as_older_configurations_name_it(folders, tmp_path, eos_token_id):
    """Published CLIPs say 2, by which the library means the token with the largest number."""
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text()) | {"eos_token_id": eos_token_id}
    (folder / "config.json").write_text(json.dumps(config))
    pooled = HunyuanTextEncoder(folders["llama"], str(folder)).encode(TEXTS).extras["pooled"]
    expected = clip_reference(CLIPTextModel.from_pretrained(folder), str(folder), TEXTS)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)


def test_sharded_weights(encoder, folders, tmp_path):
    folder = save_tiny_llama(tmp_path / "llama", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    embeddings = HunyuanTextEncoder(str(folder), folders["clip"]).encode(TEXTS).embeddings
    assert torch.equal(embeddings, encoder.encode(TEXTS).embeddings)


def test_tokenizers_beside_the_models(encoder, tmp_path):
    """diffusers' HunyuanVideo folder: text_encoder and tokenizer, text_encoder_2 and tokenizer_2."""
    paths = save_tiny_hunyuan(tmp_path)
    beside = HunyuanTextEncoder(str(paths["llama"]), str(paths["clip"]))
    for here, there in zip(parts(beside.encode(TEXTS)), parts(encoder.encode(TEXTS)), strict=True):
        assert torch.equal(here, there)


def test_the_tokenizer_is_what_its_file_says(encoder, folders, tmp_path):
    """transformers' LlamaTokenizer, which HunyuanVideo's folders name, would split a byte-level text wrongly."""
    llama = shutil.copytree(folders["llama"], tmp_path / "llama")
    config = json.loads((llama / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    (llama / "tokenizer_config.json").write_text(json.dumps(config))
    fast = HunyuanTextEncoder(str(llama), folders["clip"])
    assert torch.equal(fast.encode(TEXTS).embeddings, encoder.encode(TEXTS).embeddings)


def test_a_clip_tokenizer_of_vocabulary_and_merges(encoder, folders, tmp_path):
    clip = shutil.copytree(folders["clip"], tmp_path / "clip")
    for file in clip.glob("tokenizer*"):
        file.unlink()
    model = json.loads((Path(folders["clip"]) / "tokenizer.json").read_text())["model"]
    (clip / "vocab.json").write_text(json.dumps(model["vocab"]))
    (clip / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    slow = HunyuanTextEncoder(folders["llama"], str(clip))
    assert torch.equal(slow.encode(TEXTS).extras["pooled"], encoder.encode(TEXTS).extras["pooled"])
    slow.save_pretrained(tmp_path / "saved", embed=True)
    saved = HunyuanTextEncoder.from_pretrained(tmp_path / "saved")
    assert torch.equal(saved.encode(TEXTS).extras["pooled"], encoder.encode(TEXTS).extras["pooled"])


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_saved_as_a_reference(encoder, folders, tmp_path):
    encoder.save_pretrained(tmp_path / "saved")
    assert [file.name for file in (tmp_path / "saved").iterdir()] == ["config.json"]
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert {name: saved[name] for name in folders} == folders
    loaded = HunyuanTextEncoder.from_pretrained(tmp_path / "saved")
    for here, there in zip(parts(loaded.encode(TEXTS)), parts(encoder.encode(TEXTS)), strict=True):
        assert torch.equal(here, there)


def test_saved_with_its_weights_it_can_be_moved(encoder, tmp_path):
    paths = save_tiny_hunyuan(tmp_path / "base")
    HunyuanTextEncoder(str(paths["llama"]), str(paths["clip"])).save_pretrained(tmp_path / "saved", embed=True)
    shutil.rmtree(tmp_path / "base")
    (tmp_path / "saved").rename(tmp_path / "moved")
    saved = json.loads((tmp_path / "moved" / "config.json").read_text())
    assert (saved["llama"], saved["clip"]) == ("llama", "clip")
    for name in ("llama", "clip"):
        files = sorted(file.name for file in (tmp_path / "moved" / name).iterdir())
        assert files == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    loaded = HunyuanTextEncoder.from_pretrained(tmp_path / "moved")
    for here, there in zip(parts(loaded.encode(TEXTS)), parts(encoder.encode(TEXTS)), strict=True):
        assert torch.equal(here, there)


def test_offloaded_it_computes_where_it_is_told(encoder, folders):
    from accelerate import cpu_offload

    sequential = HunyuanTextEncoder(**folders)
    cpu_offload(sequential, torch.device("cpu"))
    assert {parameter.device.type for parameter in sequential.parameters()} == {"meta"}
    assert sequential.execution_device() == torch.device("cpu")
    assert torch.equal(sequential.encode(TEXTS).embeddings, encoder.encode(TEXTS).embeddings)


# ---- mistakes: one sentence at construction --------------------------------------------------------------------------


def refuse(error: type[Exception], match: str, **settings) -> None:
    with pytest.raises(error, match=match) as caught:
        HunyuanTextEncoder(**settings)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize("name", ["llama", "clip"])
def test_missing_folders_and_files(folders, tmp_path, name):
    def refuse_folder(error, match, folder):
        refuse(error, f"HunyuanTextEncoder.{name}: .*{match}", **{**folders, name: str(folder)})

    refuse_folder(FileNotFoundError, "'/nowhere' does not exist; give the folder", "/nowhere")
    refuse_folder(FileNotFoundError, r"no config\.json; give the folder", tmp_path)
    copy = shutil.copytree(folders[name], tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{")
    refuse_folder(ValueError, "no whole tokenizer", copy)
    (copy / "tokenizer.json").unlink()
    refuse_folder(FileNotFoundError, r"no tokenizer in .*copy' or .*put the tokenizer\.json", copy)
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[:-10])
    refuse_folder(ValueError, "not a whole safetensors file", copy)
    (copy / "model.safetensors").unlink()
    refuse_folder(FileNotFoundError, r"holds no \.safetensors file", copy)


def test_other_models(folders, tmp_path):
    refuse(ValueError, "holds a clip_text_model, not a llama or llava", llama=folders["clip"], clip=folders["clip"])
    refuse(ValueError, "holds a llama, not a clip_text_model or clip", llama=folders["llama"], clip=folders["llama"])
    other = save_tiny_llama(tmp_path / "other", "llava")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["model_type"] = "mistral"
    (other / "config.json").write_text(json.dumps(config))
    refuse(ValueError, "is a mistral; give", llama=str(other), clip=folders["clip"])


def test_settings_out_of_range(folders):
    refuse(ValueError, "max_tokens of HunyuanTextEncoder must be at least 1", **folders, max_tokens=0)
    refuse(ValueError, "dtype of HunyuanTextEncoder is", **folders, dtype="fp16")


def test_weights_of_another_size(folders, tmp_path):
    llama = shutil.copytree(folders["llama"], tmp_path / "llama")
    config = json.loads((llama / "config.json").read_text()) | {"num_hidden_layers": 9}
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"not a LlamaModel of the size .* 'layers\.4\..*' is missing \(27 in all\)"):
        HunyuanTextEncoder(str(llama), folders["clip"]).encode(["x"])


def test_the_tiny_clip_tokenizer_is_clips(tmp_path):
    """The builder's vocabulary goes through CLIP's own rules: lower case, end of word, begin and end of text."""
    tokenizer = CLIPTokenizer.from_pretrained(save_clip_tokenizer(tmp_path))
    assert tokenizer.tokenize("RED re") == ["red</w>", "r", "e</w>"]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id, tokenizer.eos_token_id] == [574, 575]
