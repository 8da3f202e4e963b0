"""A vision-language model behind an OpenAI-compatible endpoint: vLLM, SGLang, or a hosted service."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from icve.curation.annotate.answers import AnswerStore
from icve.curation.annotate.jpegs import PictureFormat, data_url, fit
from icve.curation.annotate.rate import RateLimit
from icve.curation.annotate.usage import Usage, UsageLog
from icve.curation.vision_language import Answer, Question, VisionLanguageModel

_PATCH = 28 * 28  # pixels to a token, about, where models say: only estimates, corrected by what the endpoint counts

# What a reply of these kinds says of the setting and not of the question: gone when somebody has mended it.
_SETTING = {401: "key", 402: "payment", 403: "permission", 404: "model or address"}
_RETRIED = frozenset({408, 409, 425, 429})  # and 500 and above


class _Failure(Exception):
    """A request without an answer: why, whether another attempt may help, and when."""

    def __init__(self, reason: str, transient: bool, again: bool, after: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.transient, self.again, self.after = reason, transient, again, after


class EndpointModel(VisionLanguageModel):
    """Asks an endpoint that speaks OpenAI's chat completions, through the ``openai`` package (extra ``endpoint``).

    Questions of a call are asked side by side. A request that fails (no connection, time-out, 408, 409, 425, 429, 5xx,
    or a reply that is no completion) is repeated after waits that double each time, with jitter, never before the time
    that the endpoint's ``Retry-After`` names; then all other requests of the run wait as well. An answer that fails its
    question's check is asked for once more, with what is wrong with it. Valid answers are kept on disk by model,
    prompt, pictures and parameters, and are not asked for again; every request's tokens are written beside them (see
    ``icve.curation.annotate.usage.total_usage``).

    Args:
        base_url: address, with its version, as in ``http://localhost:8000/v1``.
        model: name under which the endpoint serves the model.
        api_key_env: environment variable that holds the key; None for an endpoint without keys.
        concurrency: most requests at the same time, of each process.
        timeout: seconds without a sign of the endpoint after which a request has failed.
        attempts: most times a request is made.
        first_wait: seconds before the second attempt; doubled before each further one.
        longest_wait: most seconds to wait before an attempt. An endpoint that asks for more has failed for this time.
        requests_per_minute, tokens_per_minute: limits that all processes of a run keep together; None for none.
        image_format: "jpeg", or "png", which is lossless and ten times larger.
        jpeg_quality: 1 to 100.
        longest_side: pixels that larger pictures are scaled down to: fewer pixels are fewer tokens.
        temperature: 0 for the likeliest answer; None leaves it to the endpoint, where a model accepts no other.
        max_tokens_name: what the endpoint calls the longest answer; some hosted models know only the newer name.
        extra_body: further entries of the request, as in ``{chat_template_kwargs: {enable_thinking: false}}``.
        input_price, output_price: of a million tokens, in any currency, for the account of costs.
        cache: folder for answers and usage; None takes ``answers/`` in the run's output, or, where there is no run, a
            temporary folder that goes with this object.

    Raises:
        ValueError: a parameter out of its range.
    """

    needs: ClassVar[Literal["cpu", "gpu"]] = "cpu"
    # What is asked decides an answer; where, how fast and at what price does not.
    incidental: ClassVar[frozenset[str]] = frozenset(
        [
            *("base_url", "api_key_env", "concurrency", "timeout", "attempts", "first_wait", "longest_wait"),
            *("requests_per_minute", "tokens_per_minute", "max_tokens_name", "input_price", "output_price", "cache"),
        ]
    )

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        attempts: int = 6,
        first_wait: float = 1.0,
        longest_wait: float = 60.0,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        image_format: PictureFormat = "jpeg",
        jpeg_quality: int = 90,
        longest_side: int = 1024,
        temperature: float | None = 0.0,
        max_tokens_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
        extra_body: dict[str, Any] | None = None,
        input_price: float = 0.0,
        output_price: float = 0.0,
        cache: str | None = None,
    ) -> None:
        if not re.match(r"https?://[^/]", base_url):
            raise ValueError(f"base_url must be an address such as http://localhost:8000/v1, not {base_url!r}.")
        if not model:
            raise ValueError("model must be the name under which the endpoint serves the model.")
        if concurrency < 1 or attempts < 1 or longest_side < 28 or not 1 <= jpeg_quality <= 100:
            raise ValueError(
                "concurrency and attempts must be at least 1, longest_side at least 28, jpeg_quality 1 to 100."
            )
        if not timeout > 0 or not 0 <= first_wait <= longest_wait:
            raise ValueError("timeout must be above 0, and first_wait between 0 and longest_wait.")
        if any(limit is not None and not limit > 0 for limit in (requests_per_minute, tokens_per_minute)):
            raise ValueError("requests_per_minute and tokens_per_minute must be above 0, or null for no limit.")
        if not (input_price >= 0 and output_price >= 0):
            raise ValueError("input_price and output_price must be at least 0.")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.concurrency, self.timeout, self.attempts = concurrency, timeout, attempts
        self.first_wait, self.longest_wait = first_wait, longest_wait
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.image_format: PictureFormat = image_format
        self.jpeg_quality, self.longest_side = jpeg_quality, longest_side
        self.temperature, self.max_tokens_name, self.extra_body = temperature, max_tokens_name, extra_body
        self.input_price, self.output_price, self.cache = input_price, output_price, cache
        # All attempts, for the question and once more for its correction.
        queue = 3600.0 if requests_per_minute or tokens_per_minute else 60.0
        self.seconds = 2 * attempts * (timeout + longest_wait) + queue
        self._client: Any = None
        self._folder: Path | None = None

    def setup(self) -> None:
        """Connect.

        Raises:
            ValueError: the package or the key is missing, or the endpoint refuses the key.
            OSError: nothing answers at the address.
        """
        try:
            import openai
        except ImportError as error:
            raise ValueError("Endpoints are asked through the openai package: pip install 'icve[endpoint]'.") from error
        key = "none"  # the client insists on one, and would otherwise send what it finds in the environment
        if self.api_key_env is not None:
            key = os.environ.get(self.api_key_env, "")
            if not key:
                raise ValueError(f"The environment variable {self.api_key_env} must hold the endpoint's key.")
        client = openai.OpenAI(base_url=self.base_url, api_key=key, timeout=self.timeout, max_retries=0)
        try:
            client.models.with_raw_response.list()
        except openai.AuthenticationError as error:
            raise ValueError(
                f"The endpoint {self.base_url} refuses the key: put the right one into the environment variable that "
                f"api_key_env names (now {self.api_key_env})."
            ) from error
        except openai.APIConnectionError as error:
            raise ConnectionError(
                f"There is no endpoint at {self.base_url} ({error.__cause__ or error}): start it or correct base_url."
            ) from error
        except openai.OpenAIError:
            pass  # not every endpoint lists its models
        self._client = client
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="ask")

    def keep_answers(self, folder: Path) -> None:
        """Keep answers and usage in this folder, unless the parameter ``cache`` named another."""
        folder = Path(self.cache) if self.cache else folder
        if folder != self._folder:
            self._folder = folder
            self._store, self._log = AnswerStore(folder), UsageLog(folder)
            # Another endpoint of the same run has limits of its own.
            times = folder / f"rate-{hashlib.sha256(self.base_url.encode()).hexdigest()[:12]}.json"
            self._rate = RateLimit(times, self.requests_per_minute, self.tokens_per_minute)

    def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """Answers in the order of the questions; call ``setup`` before."""
        if self._folder is None:
            folder = Path(tempfile.mkdtemp(prefix="icve-answers-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.keep_answers(folder)
        pictures = [[fit(picture, self.longest_side) for picture in question.images] for question in questions]
        keys = [self._key(question, images) for question, images in zip(questions, pictures, strict=True)]
        locks = {key: threading.Lock() for key in keys}
        return list(self._pool.map(self._answer, questions, pictures, keys, [locks[key] for key in keys]))

    def _key(self, question: Question, pictures: Sequence[np.ndarray]) -> str:
        parameters = {
            "model": self.model,
            "temperature": self.temperature,
            "max_tokens": question.max_tokens,
            "extra_body": self.extra_body,
            "pictures": [self.image_format, self.jpeg_quality if self.image_format == "jpeg" else None],
        }
        return AnswerStore.key(question.prompt, pictures, parameters)

    def _answer(self, question: Question, pictures: Sequence[np.ndarray], key: str, lock: threading.Lock) -> Answer:
        with lock:  # of equal questions one is asked, and the others find its answer
            kept = self._store.get(key)
            if kept is not None and question.check(kept) is None:
                self._log.add(self.model, Usage(kept=1))
                return Answer(kept)
            try:
                text, problem = self._ask_twice(question, pictures)
            except _Failure as failure:
                return Answer(None, failure.reason, failure.transient)
            if problem is not None:
                return Answer(None, f"{problem} The model answered: {text[:200]!r}")
            self._store.put(key, text, model=self.model, prompt=question.prompt)
            return Answer(text)

    def _ask_twice(self, question: Question, pictures: Sequence[np.ndarray]) -> tuple[str, str | None]:
        """The answer, and what is wrong with it after a second chance."""
        urls = [data_url(picture, self.image_format, self.jpeg_quality) for picture in pictures]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}
        ]
        size = len(question.prompt) / 4 + sum(np.prod(picture.shape[:2]) for picture in pictures) / _PATCH
        for chance in range(2):
            text, cut = self._request(messages, question.max_tokens, size)
            problem = f"The answer is longer than {question.max_tokens} tokens." if cut else question.check(text)
            if problem is None or chance == 1:
                break
            correction = f"This answer cannot be used. {problem} Answer again, with the corrected answer only."
            messages += [{"role": "assistant", "content": text or "-"}, {"role": "user", "content": correction}]
        return text, problem

    def _request(self, messages: list[dict[str, Any]], max_tokens: int, size: float) -> tuple[str, bool]:
        """Text of a completion and whether it was cut off; `size` estimates the tokens of the messages."""
        for attempt in range(1, self.attempts + 1):
            time.sleep(self._rate.reserve(size + max_tokens))
            try:
                completion = self._complete(messages, max_tokens)
                return self._read(completion, size + max_tokens)
            except _Failure as failure:
                wait = min(self.longest_wait, self.first_wait * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                if failure.after is not None:
                    wait += failure.after
                if not failure.again or attempt == self.attempts or (failure.after or 0) > self.longest_wait:
                    times = f" (after {attempt} attempts)" if attempt > 1 else ""
                    raise _Failure(failure.reason + times, failure.transient, False) from failure
                if failure.after is not None:
                    self._rate.pause(failure.after)
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _complete(self, messages: list[dict[str, Any]], max_tokens: int) -> Any:
        import openai

        options: dict[str, Any] = {self.max_tokens_name: max_tokens, "extra_body": self.extra_body}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        try:
            return self._client.chat.completions.create(model=self.model, messages=messages, **options)
        except openai.APITimeoutError as error:
            raise _Failure(f"the endpoint did not answer within {self.timeout:g} s", True, True) from error
        except openai.APIConnectionError as error:
            raise _Failure(f"no connection to the endpoint ({error.__cause__ or error})", True, True) from error
        except openai.APIStatusError as error:
            status = error.status_code
            reason = f"the endpoint answered with status {status}: {_excerpt(error.message)}"
            again = (status in _RETRIED or status >= 500) and error.code != "insufficient_quota"
            raise _Failure(
                reason,
                transient=again or status in _SETTING or status == 429,
                again=again,
                after=_retry_after(error.response.headers),
            ) from error
        except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON
            raise _Failure(f"the endpoint's reply is no completion ({_excerpt(str(error))})", True, True) from error

    def _read(self, completion: Any, reserved: float) -> tuple[str, bool]:
        """What a completion says; accounts for its tokens. `completion` is whatever JSON an endpoint may send."""
        try:
            choice = completion.choices[0]
            message, end = choice.message, choice.finish_reason
            text = message.content
            refusal = getattr(message, "refusal", None)
            if not isinstance(text, (str, type(None))):
                raise TypeError(f"content is {type(text).__name__}")
        except (AttributeError, IndexError, TypeError) as error:
            raise _Failure(f"the endpoint's reply is no completion ({_excerpt(str(error))})", True, True) from error
        self._account(getattr(completion, "usage", None), reserved)
        if refusal or end == "content_filter":
            raise _Failure(f"the model refused ({_excerpt(refusal or 'content filter')})", False, False)
        # Models that think aloud do it before their answer.
        return re.sub(r"^.*</think>", "", text or "", flags=re.DOTALL).strip(), end == "length"

    def _account(self, usage: Any, reserved: float) -> None:
        read, written = getattr(usage, "prompt_tokens", None), getattr(usage, "completion_tokens", None)
        if not isinstance(read, int) or not isinstance(written, int):
            self._log.add(self.model, Usage(requests=1, unmetered=1))
            return
        cost = (read * self.input_price + written * self.output_price) / 1e6
        self._log.add(self.model, Usage(requests=1, input_tokens=read, output_tokens=written, cost=cost))
        self._rate.correct(read + written - reserved)


def _excerpt(text: str) -> str:
    return " ".join(text.split())[:200]


def _retry_after(headers: Any) -> float | None:
    """Seconds that a reply asks to wait; None where it does not (or not in a way that can be understood)."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", value):
            return float(value) * unit
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
