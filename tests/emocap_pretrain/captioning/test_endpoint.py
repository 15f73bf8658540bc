"""Tests the captioner of an endpoint against a real HTTP server. No test waits for time: waits go through the clock."""

import asyncio
import json
from typing import Any

import pytest
from caption_server import ANSWER, ANSWERS, Reply, in_turn, serving
from captioning_cases import VirtualClock, captioner, face

from emocap_pretrain.captioning.chat import EndpointAddress
from emocap_pretrain.captioning.endpoint import RequestLimits, SamplingSettings, TokenPrices
from emocap_pretrain.captioning.protocol import CaptionAnswer, FaceFacts, FaceToCaption
from emocap_pretrain.errors import ConfigError, EndpointStopped, NoAnswer

PASSING = {
    "an error of the server": Reply(status=500, error="overloaded"),
    "a closed connection": Reply(hang_up=True),
    "a stream that is cut": Reply(cut=True),
    "an event that is not JSON": Reply(raw=b'data: {"choices": [\n\n'),
    "a stream without an end": Reply(raw=b'data: {"choices": [{"delta": {"content": "{}"}}]}\n\n'),
    "an error within a stream": Reply(raw=b'data: {"error": {"message": "the GPU was lost", "code": 500}}\n\n'),
}


async def _answers(rule: Any, count: int = 1, **options: Any) -> tuple[list[CaptionAnswer], Any]:
    async with serving(rule) as server, captioner(server.url, **options) as made:
        return list(await asyncio.gather(*(made.caption(face(number)) for number in range(count)))), server


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_holds_the_face_and_the_known_facts_and_its_answer_is_read(
    stream: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "sk-canary-0123456789")

    async def run() -> None:
        sampling = SamplingSettings(temperature=0.0, seed=7, max_tokens=500)
        prices = TokenPrices(prompt=2.0, completion=10.0, cached=0.5)
        options: dict[str, Any] = {"sampling": sampling, "prices": prices, "stream": stream}
        async with serving() as server, captioner(server.url, key_env="CAPTION_TEST_KEY", **options) as made:
            facts = FaceFacts(labels={"emotion": "fear"}, units={4: 3.0}, valence=-0.5)
            answer = await made.caption(FaceToCaption(key="anna-smith", jpeg=b"JPEG", digest="0" * 64, facts=facts))
        (asked,) = server.asked
        assert asked.headers["Authorization"] == "Bearer sk-canary-0123456789"
        assert len(asked.id) > 30
        assert asked.image == b"JPEG"
        assert "emotion: fear" in asked.text
        assert "AU4 3" in asked.text
        assert "valence: -0.5" in asked.text
        assert "anna" not in json.dumps(asked.body)
        # What all requests have in common comes first.
        assert [each["role"] for each in asked.body["messages"]] == ["system", "user"]
        assert "Never name the person" in asked.body["messages"][0]["content"]
        assert asked.body["response_format"]["json_schema"]["strict"] is True
        assert (asked.body["temperature"], asked.body["seed"], asked.body["max_tokens"]) == (0.0, 7, 500)
        assert asked.body.get("stream", False) is stream
        assert answer.caption is not None
        assert answer.caption.global_ == ANSWER["global"]
        assert len(answer.caption.local) == 2
        assert answer.regions[1]["action_units"] == [{"unit": 20, "intensity": "slight"}]
        assert (answer.usage.prompt, answer.usage.completion, answer.usage.cached) == (900, 100, 600)
        assert answer.usage.cost == pytest.approx((300 * 2.0 + 600 * 0.5 + 100 * 10.0) / 1e6)

    asyncio.run(run())


@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
def test_a_failure_that_may_pass_is_retried_as_the_same_request(failure: Reply) -> None:
    answers, server = asyncio.run(_answers(in_turn(failure, failure, Reply())))
    assert answers[0].caption is not None
    assert len(server.asked) == 3
    assert len({asked.id for asked in server.asked}) == 1


def test_a_request_is_given_up_after_its_retries() -> None:
    async def run() -> None:
        with pytest.raises(NoAnswer, match=r"face-0: HTTP 500: broken, in 3 attempts"):
            await _answers(in_turn(Reply(status=500, error="broken")), limits=RequestLimits(retries=2))

    asyncio.run(run())


def test_retry_after_pauses_all_requests_for_as_long_as_the_endpoint_says() -> None:
    clock = VirtualClock()
    limited = Reply(status=429, error="slow down", headers={"Retry-After": "17"})

    async def run() -> None:
        async with serving(in_turn(limited, Reply())) as server, captioner(server.url, clock=clock) as made:
            await made.caption(face(0))
            assert clock.slept == [17.0]
            assert [asked.id for asked in server.asked] == [server.asked[0].id] * 2
            # The pause is over, so another request is sent at once.
            await made.caption(face(1))
            assert clock.slept == [17.0]

    asyncio.run(run())


def test_a_pause_that_is_too_long_ends_the_run() -> None:
    async def run() -> None:
        with pytest.raises(EndpointStopped, match="asks to wait for 5000 s"):
            await _answers(in_turn(Reply(status=429, headers={"Retry-After": "5000"})))

    asyncio.run(run())


def test_an_attempt_that_hangs_is_ended_and_sent_again() -> None:
    clock = VirtualClock()

    async def run() -> None:
        never = asyncio.Event()
        async with serving(in_turn(Reply(until=never), Reply())) as server, captioner(server.url, clock=clock) as made:
            task = asyncio.create_task(made.caption(face()))
            while not server.asked:
                await asyncio.sleep(0)
            clock.expire()
            assert (await task).caption is not None
            assert len(server.asked) == 2
            never.set()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(status=401, error="wrong key sk-canary-0123456789"), r"does not accept the key \(HTTP 401.*\*\*\*"),
        (Reply(status=429, code="insufficient_quota", error="no credit"), "has no quota left for this key: no credit"),
        (Reply(status=404, error="no such model"), "no such model .*correct --endpoint or --model"),
        (Reply(status=307, headers={"Location": "http://127.0.0.1:9/v1?a=b"}), "redirects are not followed"),
    ],
)
def test_what_no_retry_can_cure_stops_all_requests_in_one_line(
    reply: Reply, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "sk-canary-0123456789")

    async def run() -> None:
        async with (
            serving(in_turn(reply)) as server,
            captioner(server.url, key_env="CAPTION_TEST_KEY") as made,
        ):
            with pytest.raises(EndpointStopped, match=message) as raised:
                await made.caption(face())
            assert "\n" not in str(raised.value)
            assert "canary" not in str(raised.value)
            with pytest.raises(EndpointStopped, match=message):  # It is not sent any more.
                await made.caption(face(1))
            assert len(server.asked) == 1

    asyncio.run(run())


def test_an_optional_field_that_the_endpoint_refuses_is_left_out() -> None:
    rule = in_turn(
        Reply(status=400, error="Unknown name 'response_format'"),
        Reply(status=400, error="stream_options is not allowed"),
        Reply(status=400, error="Use 'max_completion_tokens' instead of 'max_tokens'"),
        Reply(),
    )
    answers, server = asyncio.run(_answers(rule))
    assert answers[0].caption is not None
    assert {"response_format", "stream_options", "max_tokens"}.isdisjoint(server.asked[-1].body)
    assert server.asked[-1].body["max_completion_tokens"] == 1000


def test_refusals_are_named_and_final_and_other_unusable_answers_are_not() -> None:
    rule = in_turn(
        Reply(text="", refusal="I cannot describe people."),
        Reply(text="", finish="content_filter"),
        Reply(status=400, code="content_filter", error="the image was flagged"),
        Reply(text="A nice day."),
        Reply(text='{"problem": "no', finish="length"),
    )

    async def run() -> list[tuple[str, bool]]:
        async with serving(rule) as server, captioner(server.url) as made:
            answers = [await made.caption(face(number)) for number in range(5)]
            return [(each.reason, each.final) for each in answers]

    expected = [("refused", True)] * 3 + [("prose", False), ("cut", False)]
    assert asyncio.run(run()) == expected


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    flood = b'data: {"choices": [{"delta": {"content": "%s"}}]}\n\n' % (b"x" * 1000)
    answers, _ = asyncio.run(_answers(in_turn(Reply(raw=flood * 2000))))
    assert (answers[0].reason, answers[0].caption) == ("too_long", None)


def test_a_key_that_the_endpoint_repeats_is_in_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "sk-canary-0123456789")
    text = json.dumps({**ANSWER, "global": "The key is sk-canary-0123456789."})
    answers, _ = asyncio.run(_answers(in_turn(Reply(text=text)), key_env="CAPTION_TEST_KEY"))
    assert answers[0].caption is not None
    assert answers[0].caption.global_ == "The key is ***."


def test_no_more_requests_are_open_than_the_endpoint_has_connections() -> None:
    answers, server = asyncio.run(_answers(ANSWERS, count=100))
    assert all(answer.caption for answer in answers)
    assert server.most_at_once <= 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://10.0.0.1/v1"}, "without encryption; use https, or allow this with --plain-http"),
        ({"url": "https://user:secret-word@host/v1"}, "must have no user, password or query"),
        ({"url": "https://host/v1?key=secret-word"}, "must have no user, password or query"),
        ({"url": "ftp://host/v1"}, "give a URL such as"),
        ({"url": "https://host/v1", "key_env": "CAPTION_TEST_EMPTY"}, "this environment variable is empty"),
    ],
)
def test_a_wrong_address_is_refused_before_anything_is_sent(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        EndpointAddress(**options)
    assert "secret-word" not in str(raised.value)


def test_plain_http_is_allowed_on_this_host_and_where_the_user_says_so() -> None:
    for url in ("http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://localhost/v1/chat/completions"):
        assert EndpointAddress(url=url).completions.endswith("/v1/chat/completions")
    assert (
        EndpointAddress(url="http://10.0.0.1/v1/", plain_http=True).completions == "http://10.0.0.1/v1/chat/completions"
    )


def test_requests_to_this_host_pass_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    answers, _ = asyncio.run(_answers(ANSWERS))
    assert answers[0].caption is not None


def test_prices_belong_together() -> None:
    with pytest.raises(ConfigError, match="belong together"):
        TokenPrices(prompt=1.0)
