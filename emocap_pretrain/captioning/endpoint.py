"""Defines the captioner for an endpoint that speaks the chat completions of OpenAI, such as vLLM or a hosted model.

A request is an `ask` of `FaceCaptioner`. It is sent again until a complete reply arrives: pauses that the endpoint asks
for are obeyed by all requests together, and other failures are retried with random waits within a budget that all
requests share (decision 22 explains the budget, and decision 48 this module).
"""

import asyncio
import base64
import logging
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import orjson
from emocap_shards.store.budget import Budget

from emocap_pretrain.captioning.answers import answer_schema, read_answer
from emocap_pretrain.captioning.chat import ChatEndpoint, ChatReply, RateLimited, RefusedRequest, TransientFailure
from emocap_pretrain.captioning.pacing import MinuteWindow, Pacer, PacingClock, SentRequest, SystemClock, backoff_s
from emocap_pretrain.captioning.prompt import CaptionPrompt
from emocap_pretrain.captioning.protocol import (
    CaptionAnswer,
    FaceFacts,
    FaceToCaption,
    Json,
    TokenUsage,
    request_digest,
)
from emocap_pretrain.errors import ConfigError, EndpointStopped, NoAnswer

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)

MOST_LIMITED = 100  # How often one request may be told to wait.
_IMAGE_TOKENS = 1000  # A guess for the limit of tokens per minute, until the first reply says the number.
_LETTERS_PER_TOKEN = 4
_NEXT_WARNING_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingSettings:
    """Holds the settings of the sampling. None leaves a setting to the endpoint."""

    max_tokens: int = 1000
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """Holds the prices of a million tokens, in the user's currency; None is unknown.

    Cached tokens cost `cached`, or `prompt` if that is None. `prompt` and `completion` are given together.
    """

    prompt: float | None = None
    completion: float | None = None
    cached: float | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) != (self.completion is None) or (self.cached is not None and self.prompt is None):
            raise ConfigError("--price-prompt and --price-completion belong together: give both, or none.")

    def cost(self, usage: TokenUsage) -> float | None:
        """Returns the cost of an answer; None if a price or a number of tokens is unknown."""
        if self.prompt is None or self.completion is None or usage.prompt is None or usage.completion is None:
            return None
        cached = min(usage.cached or 0, usage.prompt)
        price_cached = self.prompt if self.cached is None else self.cached
        paid = (usage.prompt - cached) * self.prompt + cached * price_cached + usage.completion * self.completion
        return paid / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """Limits the requests to an endpoint.

    Attributes:
        requests: Requests per minute; None is no limit.
        tokens: Tokens per minute, of prompts and completions; None is no limit.
        timeout_s: Seconds in which an attempt must be complete.
        retries: Attempts after the first one of a request, without those that the endpoint has told to wait.
        patience_s: Longest wait for the budget of retries. After it, the request is left for the next start.
        longest_pause_s: Longest pause that the endpoint may ask for. After a longer one the command ends.
    """

    requests: int | None = None
    tokens: int | None = None
    timeout_s: float = 300.0
    retries: int = 6
    patience_s: float = 300.0
    longest_pause_s: float = 900.0


class EndpointCaptioner:
    """Implements `FaceCaptioner` with an endpoint.

    Args:
        endpoint: The open endpoint.
        model: The name of the model.
        prompt: The prompt.
        sampling: The settings of the sampling.
        prices: The prices of tokens.
        limits: The limits.
        stream: Whether replies are streamed.
        schema: Whether the endpoint is asked to enforce the form of an answer. If it does not know this, or does not
            know another optional field, the field is left out from then on.
        clock: The clock of waits.
    """

    def __init__(
        self,
        endpoint: ChatEndpoint,
        model: str,
        prompt: CaptionPrompt,
        *,
        sampling: SamplingSettings = SamplingSettings(),
        prices: TokenPrices = TokenPrices(),
        limits: RequestLimits = RequestLimits(),
        stream: bool = True,
        schema: bool = True,
        clock: PacingClock | None = None,
    ) -> None:
        self._endpoint, self._model, self._prompt = endpoint, model, prompt
        self._sampling, self._prices, self._limits = sampling, prices, limits
        self._clock = clock or SystemClock()
        self._pacer = Pacer(self._clock, MinuteWindow(limits.requests, limits.tokens))
        self._budget = Budget(self._clock.now)
        self._optional = _optional_fields(stream=stream, schema=schema)
        self._tokens_name = "max_tokens"
        self._tokens = float(sampling.max_tokens + _IMAGE_TOKENS + len(prompt.system) // _LETTERS_PER_TOKEN)
        self._stopped: asyncio.Future[EndpointStopped] | None = None
        self._warned_at = float("-inf")

    @property
    def settings(self) -> Json:
        return {"model": self._model, "prompt": self._prompt.digest, "sampling": asdict(self._sampling)}

    def facts_text(self, facts: FaceFacts) -> str:
        return self._prompt.facts_text(facts)

    async def caption(self, face: FaceToCaption, *, ask: int = 1, earlier: str = "") -> CaptionAnswer:
        key = f"{request_digest(face.key, face.digest, face.facts, self)}-{ask}"
        try:
            reply = await self._reply(face, earlier, key)
        except RefusedRequest as error:
            if error.is_flagged:
                return CaptionAnswer(reason="refused", text=str(error), model=self._model)
            raise NoAnswer(f"{face.key}: the endpoint refuses the request ({error}).") from error
        except EndpointStopped as error:
            self._stop(error)
            raise
        usage = replace(reply.usage, cost=self._prices.cost(reply.usage))
        refusal = reply.refusal or ("content filter" if reply.finish == "content_filter" else "")
        is_cut = reply.finish == "length"
        return read_answer(reply.text, refusal=refusal, is_cut=is_cut, usage=usage, model=reply.model or self._model)

    async def _reply(self, face: FaceToCaption, earlier: str, key: str) -> ChatReply:
        """Returns the complete reply to a request, which is sent until one arrives."""
        failures = limited = 0
        while True:
            sent = await self._unless_stopped(self._pacer.turn(self._tokens))
            try:
                async with self._clock.timeout(self._limits.timeout_s):
                    reply = await self._endpoint.post(self._body(face, earlier), key)
            except RateLimited as error:
                self._pacer.correct(sent, 0)
                limited += 1
                self._pause(face, error, limited)
            except TimeoutError:
                failures += 1
                await self._wait(face, f"no complete reply within {self._limits.timeout_s:g} s", failures)
            except TransientFailure as error:
                failures += 1
                await self._wait(face, str(error), failures)
            except RefusedRequest as error:
                if not self._leave_out(str(error)):
                    raise
            else:
                self._budget.succeeded(again=failures > 0)
                self._settle(sent, reply.usage)
                return reply

    def _body(self, face: FaceToCaption, earlier: str) -> bytes:
        """Returns a request in JSON. What is equal in all requests comes first, so an endpoint can cache it."""
        image = f"data:image/jpeg;base64,{base64.b64encode(face.jpeg).decode()}"
        text = self._prompt.user(self.facts_text(face.facts), earlier)
        sampling = {name: value for name, value in asdict(self._sampling).items() if value is not None}
        sampling[self._tokens_name] = sampling.pop("max_tokens")
        return orjson.dumps(
            {
                "model": self._model,
                **sampling,
                **self._optional,
                "messages": [
                    {"role": "system", "content": self._prompt.system},
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": image}},
                            {"type": "text", "text": text},
                        ],
                    },
                ],
            }
        )

    def _settle(self, sent: SentRequest, usage: TokenUsage) -> None:
        """Replaces the estimate of the tokens of a request by their number, if the endpoint says it."""
        if usage.prompt is not None and usage.completion is not None:
            tokens = usage.prompt + usage.completion
            self._pacer.correct(sent, tokens)
            self._tokens += 0.1 * (tokens - self._tokens)

    def _pause(self, face: FaceToCaption, error: RateLimited, limited: int) -> None:
        """Pauses all requests, because the endpoint has asked for that."""
        if error.wait_s > self._limits.longest_pause_s:
            raise EndpointStopped(f"the endpoint asks to wait for {error.wait_s:.0f} s ({error}): start again later.")
        if limited >= MOST_LIMITED:
            raise NoAnswer(f"{face.key}: the endpoint has asked {limited} times to wait ({error}).")
        self._pacer.pause(error.wait_s or backoff_s(limited))

    async def _wait(self, face: FaceToCaption, reason: str, failures: int) -> None:
        """Waits before another attempt: a random time, and then until the budget of all requests has a token."""
        if failures > self._limits.retries:
            raise NoAnswer(f"{face.key}: {reason}, in {failures} attempts.")
        if self._clock.now() - self._warned_at >= _NEXT_WARNING_S:
            self._warned_at = self._clock.now()
            _log.warning("the endpoint fails: %s; trying again.", reason)
        await self._unless_stopped(self._clock.sleep(backoff_s(failures)))
        try:
            async with self._clock.timeout(self._limits.patience_s):
                await self._unless_stopped(self._budget.turn())
        except TimeoutError:
            raise NoAnswer(f"{face.key}: {reason}; too many other requests fail as well.") from None

    def _leave_out(self, refusal: str) -> bool:
        """Leaves out an optional field that the endpoint refuses, and returns whether there was one."""
        if self._tokens_name == "max_tokens" and "max_completion_tokens" in refusal:
            self._tokens_name = "max_completion_tokens"
            return True
        named = [name for name in self._optional if name in refusal]
        if "json_schema" in refusal and "response_format" in self._optional:
            named = ["response_format"]
        for name in named:
            del self._optional[name]
            _log.warning("the endpoint refuses %s, so the requests are sent without it: %s.", name, refusal)
        return bool(named)

    def _stop(self, error: EndpointStopped) -> None:
        future = self._stopping()
        if not future.done():
            future.set_result(error)

    def _stopping(self) -> "asyncio.Future[EndpointStopped]":
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_future()
        return self._stopped

    async def _unless_stopped(self, waiting: Coroutine[Any, Any, _Result]) -> _Result:
        """Awaits, but raises the error that has stopped another request as soon as there is one."""
        stopping, task = self._stopping(), asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({stopping, task}, return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                raise EndpointStopped(*stopping.result().args)
            return task.result()
        finally:
            task.cancel()


def _optional_fields(*, stream: bool, schema: bool) -> dict[str, Any]:
    """Returns the fields of a request without which an older endpoint can still answer."""
    form = {"type": "json_schema", "json_schema": {"name": "face", "strict": True, "schema": answer_schema()}}
    streamed: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    return {**({"response_format": form} if schema else {}), **streamed}
