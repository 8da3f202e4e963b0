"""A transformers vision-language model on this machine, with tiny random weights of a real class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from icve.curation.annotate.local import LocalModel
from icve.curation.vision_language import Question
from tests.tiny_hunyuan import VISION, save_llama_tokenizer

TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }}: {% for part in turn['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A LLaVA that looks at 8x8 pixels in four patches, with its processor."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = AutoTokenizer.from_pretrained(save_llama_tokenizer(folder))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.5,  # so that random answers depend on what is asked
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    vision = CLIPVisionConfig(**VISION | {"initializer_range": 0.5})
    LlavaForConditionalGeneration(
        LlavaConfig(text_config=text, vision_config=vision, image_token_index=image, vision_feature_layer=-1)
    ).save_pretrained(folder)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder) -> LocalModel:
    model = LocalModel(str(folder), batch_size=3, device="cpu")
    model.setup()
    return model


def questions(count: int, check=lambda text: None) -> list[Question]:
    """Prompts of different lengths with none, one or two pictures, some with a shorter limit."""
    rng = np.random.default_rng(0)
    return [
        Question(
            "What is there? " * (1 + number % 3) + str(number),
            [rng.integers(0, 256, (20, 30, 3), dtype=np.uint8) for _ in range(number % 3)],
            check,
            max_tokens=6 if number % 4 == 0 else 12,
        )
        for number in range(count)
    ]


def test_batches_say_what_single_questions_say(model):
    asked = questions(11)
    together = [answer.text for answer in model.ask(asked)]
    single = [model.ask([question])[0].text for question in asked]
    assert together == single
    assert len(set(single)) > 5  # the answers depend on the questions
    assert model.ask([]) == []


def test_pictures_are_seen(model):
    rng = np.random.default_rng(1)
    seen = {
        model.ask([Question("What?", [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)], lambda text: None, 4)])[0].text
        for _ in range(6)
    }
    assert len(seen) > 1


def test_answers_are_no_longer_than_asked_for(model):
    lengths = (1, 4, 16)
    answers = model.ask([Question("What?", check=lambda text: None, max_tokens=length) for length in lengths])
    short, middle, long = (len(answer.text) for answer in answers)
    assert short < middle < long


def test_a_wrong_answer_is_asked_for_once_more_and_then_rejected(model):
    heard: list[str] = []

    def check(text):
        heard.append(text)
        return "It has no verb."

    asked = [Question("First.", (), check, 8), Question("Second.", (), lambda text: None, 8)]
    wrong, right = model.ask(asked)
    assert wrong.text is None
    assert not wrong.transient
    assert "It has no verb." in wrong.error
    assert right.text is not None
    assert len(set(heard)) == 2  # the correction led to another answer


def test_the_correction_tells_what_is_wrong(model, monkeypatch):
    chats = []
    monkeypatch.setattr(model, "_batch", lambda asked, turns: [chats.append(turn) or "no" for turn in turns])
    model.ask([Question("First.", [np.zeros((8, 8, 3), np.uint8)], lambda text: "It has no verb.")])
    assert [turn["role"] for turn in chats[-1]] == ["user", "assistant", "user"]
    assert [part["type"] for part in chats[-1][0]["content"]] == ["image", "text"]
    assert "It has no verb." in chats[-1][2]["content"][0]["text"]


def test_a_batch_that_does_not_fit_into_memory_is_halved(model, monkeypatch):
    whole = LocalModel._batch
    sizes = []

    def limited(asked, chats):
        sizes.append(len(asked))
        if len(asked) > 1 or asked[0].prompt == "large":
            raise torch.OutOfMemoryError("too large")
        return whole(model, asked, chats)

    monkeypatch.setattr(model, "_batch", limited)
    asked = [Question(text, (), lambda text: None, 8) for text in ("one", "two", "large")]
    answers = model.ask(asked)
    assert sizes == [3, 1, 2, 1, 1]
    monkeypatch.undo()
    assert [answer.text for answer in answers[:2]] == [model.ask([question])[0].text for question in asked[:2]]
    assert answers[2].text is None
    assert "memory" in answers[2].error


def test_a_gpu_is_taken_where_there_is_one(folder):
    model = LocalModel(str(folder))
    model.setup()
    gpu = torch.cuda.is_available()
    assert model._model.device.type == ("cuda" if gpu else "cpu")
    assert model._model.dtype == (torch.bfloat16 if gpu else torch.float32)
    assert model.needs == "gpu"


def test_folders_that_are_no_models_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="There is no model in"):
        LocalModel(str(tmp_path))
    with pytest.raises(ValueError, match="batch_size"):
        LocalModel(str(folder), batch_size=0)


def test_a_model_without_a_chat_template_is_refused(folder, tmp_path):
    for file in folder.iterdir():
        if "template" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="no chat template"):
        LocalModel(str(tmp_path)).setup()


def test_pickled_weights_are_refused(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (weights,) = tmp_path.glob("*.safetensors")
    weights.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        LocalModel(str(tmp_path)).setup()
