"""A vision-language model that runs here: a folder that transformers reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from icve.curation.annotate.jpegs import fit
from icve.curation.vision_language import Answer, Question, VisionLanguageModel


class LocalModel(VisionLanguageModel):
    """Asks a transformers image-text-to-text model, greedily and in batches.

    Only files of the folder are read: weights as safetensors, no code. An answer that fails its question's check is
    asked for once more, with what is wrong with it.

    Args:
        folder: model folder as ``save_pretrained`` writes it, with its processor and chat template.
        batch_size: questions generated together; halved for those that do not fit into memory.
        device: "auto" takes the GPU where there is one.
        dtype: "auto" is bfloat16 on a GPU and float32 on the CPU.
        longest_side: pixels that larger pictures are scaled down to.

    Raises:
        ValueError: a parameter out of its range, or no folder.
    """

    needs: ClassVar[Literal["cpu", "gpu"]] = "gpu"
    incidental: ClassVar[frozenset[str]] = frozenset({"batch_size", "device"})
    seconds = 900.0  # a large model on a CPU takes minutes for an answer

    def __init__(
        self,
        folder: str,
        batch_size: int = 4,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        longest_side: int = 1024,
    ) -> None:
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(
                f"There is no model in {folder!r}: give a folder with config.json and safetensors weights."
            )
        if batch_size < 1 or longest_side < 28:
            raise ValueError("batch_size must be at least 1 and longest_side at least 28.")
        self.folder, self.batch_size, self.device, self.dtype = folder, batch_size, device, dtype
        self.longest_side = longest_side

    def setup(self) -> None:
        """Load the model.

        Raises:
            ValueError: the folder lacks a chat template.
            OSError: weights are missing or no safetensors.
        """
        gpu = torch.cuda.is_available() if self.device == "auto" else self.device.startswith("cuda")
        device = ("cuda" if gpu else "cpu") if self.device == "auto" else self.device
        dtype = ("bfloat16" if gpu else "float32") if self.dtype == "auto" else self.dtype
        own = {"local_files_only": True, "trust_remote_code": False}
        self._processor = AutoProcessor.from_pretrained(self.folder, **own)
        tokenizer = self._processor.tokenizer
        if not (self._processor.chat_template or tokenizer.chat_template):
            raise ValueError(f"{self.folder!r} has no chat template: give a model that was trained to answer.")
        tokenizer.padding_side = "left"  # answers begin where the prompts end, at one place for the whole batch
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForImageTextToText.from_pretrained(
            self.folder, **own, use_safetensors=True, dtype=getattr(torch, dtype)
        )
        self._model = model.to(device).eval()  # type: ignore[arg-type]  # transformers' decorator loses `self`

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; call ``setup`` before."""
        chats = [[_turn("user", question.prompt, len(question.images))] for question in questions]
        texts = self._generate(questions, chats, range(len(questions)))
        wrong: dict[int, str] = {}
        for number, text in texts.items():
            if text is not None and (problem := questions[number].check(text)) is not None:
                wrong[number] = problem
                correction = f"This answer cannot be used. {problem} Answer again, with the corrected answer only."
                chats[number] += [_turn("assistant", text), _turn("user", correction)]
        texts |= self._generate(questions, chats, list(wrong))
        return [self._judged(question, texts[number]) for number, question in enumerate(questions)]

    @staticmethod
    def _judged(question: Question, text: str | None) -> Answer:
        if text is None:
            return Answer(None, "the question does not fit into memory", transient=True)
        problem = question.check(text)
        return Answer(text) if problem is None else Answer(None, f"{problem} The model answered: {text[:200]!r}")

    def _generate(
        self, questions: Sequence[Question], chats: Sequence[list[dict[str, Any]]], numbers: Sequence[int]
    ) -> dict[int, str | None]:
        """Answers by the question's number, None for one that does not fit into memory."""
        alike: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for number in numbers:  # a batch has one limit of tokens, and processors want as many pictures of each prompt
            alike[len(questions[number].images), questions[number].max_tokens].append(number)
        texts: dict[int, str | None] = {}
        for group in alike.values():
            batches = [group[first : first + self.batch_size] for first in range(0, len(group), self.batch_size)]
            while batches:
                batch = batches.pop(0)
                try:
                    found = self._batch([questions[n] for n in batch], [chats[n] for n in batch])
                    texts |= dict(zip(batch, found, strict=True))
                except torch.OutOfMemoryError:
                    torch.cuda.empty_cache()
                    half = len(batch) // 2
                    batches = [batch[:half], batch[half:], *batches] if half else batches
                    texts |= {} if half else {batch[0]: None}
        return texts

    @torch.inference_mode()
    def _batch(self, questions: Sequence[Question], chats: Sequence[list[dict[str, Any]]]) -> list[str]:
        prompts = [self._processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        pictures = [
            [Image.fromarray(fit(picture, self.longest_side)) for picture in question.images] for question in questions
        ]
        inputs = self._processor(
            text=prompts, images=pictures if pictures[0] else None, padding=True, return_tensors="pt"
        ).to(self._model.device, self._model.dtype)
        output = self._model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            max_new_tokens=questions[0].max_tokens,
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        answers = output[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self._processor.batch_decode(answers, skip_special_tokens=True)]


def _turn(role: str, text: str, pictures: int = 0) -> dict[str, Any]:
    return {"role": role, "content": [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": text}]}
