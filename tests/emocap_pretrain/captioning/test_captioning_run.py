"""Tests that every answer is stored before it is used, and that no stored answer is asked for again."""

import asyncio
import errno
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from caption_server import ANSWERS, Asked, CaptionServer, Reply, in_turn, serving
from captioning_cases import captioned

from emocap_pretrain.captioning.journal import AnswerJournal, open_journal
from emocap_pretrain.captioning.run import CaptioningRun
from emocap_pretrain.errors import CaptioningError, ConfigError, EndpointStopped


def _run(rule: Any, out: Path, count: int = 20, **options: Any) -> tuple[CaptioningRun, CaptionServer]:
    async def run() -> tuple[CaptioningRun, CaptionServer]:
        async with serving(rule) as server:
            return await captioned(server.url, out, count, **options), server

    return asyncio.run(run())


def _stored(out: Path) -> set[str]:
    journal = open_journal(out / "answers.journal")
    try:
        return {request for request, state in journal.states.items() if state.final}
    finally:
        journal.close()


def test_a_second_run_asks_for_nothing_and_new_faces_are_asked_for(tmp_path: Path) -> None:
    first, server = _run(ANSWERS, tmp_path)
    assert (first.report.captioned, first.report.faces, len(server.asked)) == (20, 20, 20)
    again, server = _run(ANSWERS, tmp_path)
    assert (again.report.stored, len(server.asked)) == (20, 0)
    more, server = _run(ANSWERS, tmp_path, count=25)
    assert (more.report.stored, more.report.captioned, len(server.asked)) == (20, 5, 5)
    # Other facts are another request. The person is never one of them.
    other, server = _run(ANSWERS, tmp_path, count=3, facts=("*",))
    assert (other.report.captioned, "anna" in server.asked[0].text) == (3, False)
    assert "emotion: fear" in server.asked[0].text


def test_unusable_answers_are_asked_for_again_within_the_budget_also_over_starts(tmp_path: Path) -> None:
    prose = in_turn(Reply(text="A face."))
    run, server = _run(prose, tmp_path, count=4, asks=2)
    assert run.report.reasons == Counter(prose=4)
    assert (run.report.unusable, len(server.asked)) == (8, 8)
    texts = Counter("could not be used: prose" in asked.text for asked in server.asked)
    assert texts == {False: 4, True: 4}
    assert len({asked.id for asked in server.asked}) == 8
    # Two asks are spent. A start with a larger budget makes the third, and no more than that.
    run, server = _run(prose, tmp_path, count=4, asks=3)
    assert len(server.asked) == 4
    run, server = _run(prose, tmp_path, count=4, asks=3)
    assert (len(server.asked), run.report.stored) == (0, 4)


def test_a_key_that_is_revoked_stops_the_run_and_the_next_start_asks_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTION_TEST_KEY", "sk-canary-0123456789")
    revoked = Reply(status=401, error="the key sk-canary-0123456789 was revoked")

    async def run() -> None:
        async with serving(lambda number, _: Reply() if number < 30 else revoked) as server:
            with pytest.raises(EndpointStopped, match="does not accept the key"):
                await captioned(server.url, tmp_path, 100, key_env="CAPTION_TEST_KEY")
            stored = len(_stored(tmp_path))
            # Those under way at that time were still answered, each by its own 401.
            assert stored == 30
            assert len(server.asked) <= 30 + 8
        async with serving() as server:
            made = await captioned(server.url, tmp_path, 100, key_env="CAPTION_TEST_KEY")
            assert (made.report.stored, len(server.asked)) == (30, 70)
            assert 1 <= made.report.repeated <= 8

    asyncio.run(run())
    assert b"canary" not in (tmp_path / "answers.journal").read_bytes()


def test_a_full_disk_stops_the_run_in_one_line_and_loses_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = os.pwrite
    lines = 0

    def full(file: int, data: bytes, at: int) -> int:
        nonlocal lines
        lines += 1
        if lines <= 40:
            return written(file, data, at)
        written(file, data[:10], at)  # As much as there is room for.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run() -> None:
        async with serving() as server:
            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(CaptioningError, match=r"cannot be written \(no space is left there.*resumes"):
                await captioned(server.url, tmp_path, 100)
            monkeypatch.undo()
            stored = len(_stored(tmp_path))
            before = len(server.asked)
            made = await captioned(server.url, tmp_path, 100)
            assert made.report.stored == stored
            assert len(server.asked) - before == 100 - stored
            assert 10 < stored < 30

    asyncio.run(run())


def test_an_endpoint_that_answers_nothing_ends_the_run_before_all_faces_were_tried(tmp_path: Path) -> None:
    broken = Reply(status=400, error="this model reads no images")
    with pytest.raises(EndpointStopped, match=r"none of the first 3 faces.*reads no images"):
        _run(in_turn(broken), tmp_path, count=1000)
    with pytest.raises(EndpointStopped, match=r"none of the last 10 faces.*reads no images"):
        _run(lambda number, _: broken if number else Reply(), tmp_path / "later", count=1000)


def test_one_face_that_the_endpoint_refuses_does_not_end_the_run(tmp_path: Path) -> None:
    def rule(number: int, asked: Asked) -> Reply:
        return Reply(status=400, error="bad image") if number % 7 == 3 else Reply()

    run, server = _run(rule, tmp_path, count=50)
    assert run.report.unanswered > 0
    assert run.report.unanswered + run.report.captioned == 50
    again, server = _run(ANSWERS, tmp_path, count=50)
    assert len(server.asked) == run.report.unanswered == again.report.captioned


def test_no_request_is_sent_once_the_costs_have_reached_their_limit(tmp_path: Path) -> None:
    from captioning_cases import VirtualClock, captioner, rows

    from emocap_pretrain.captioning.endpoint import TokenPrices
    from emocap_pretrain.captioning.run import CaptioningSettings

    async def run(most: float) -> tuple[CaptioningRun, int]:
        journal = open_journal(tmp_path / "answers.journal")
        try:
            prices = TokenPrices(prompt=1000.0, completion=1000.0)  # Each answer costs 1.
            async with serving() as server, captioner(server.url, prices=prices, clock=VirtualClock()) as made:
                settings = CaptioningSettings(prompt="faces 1", concurrency=4, most_cost=most)
                done = CaptioningRun(made, journal, settings)
                await done.caption(rows(50))
                return done, len(server.asked)
        finally:
            journal.close()

    done, asked = asyncio.run(run(10.0))
    assert done.stopped_at_cost
    assert 10 <= asked <= 13  # At most the requests that were under way come on top.
    done, more = asyncio.run(run(20.0))
    assert 20 <= asked + more <= 23


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_torn_last_line_costs_that_answer_alone(tmp_path: Path, cut: int) -> None:
    _run(ANSWERS, tmp_path, count=5)
    path = tmp_path / "answers.journal"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert len(_stored(tmp_path)) == 4
    assert path.read_bytes().endswith(b"\n")
    run, server = _run(ANSWERS, tmp_path, count=5)
    assert (len(server.asked), run.report.repeated, len(_stored(tmp_path))) == (1, 1, 5)


def test_a_damaged_line_in_the_middle_costs_that_answer_alone(tmp_path: Path) -> None:
    _run(ANSWERS, tmp_path, count=5)
    path = tmp_path / "answers.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    (place,) = [at for at, line in enumerate(lines) if b'"answer"' in line and b"face-0002" in line]
    lines[place] = lines[place].replace(b"afraid", b"amused")
    path.write_bytes(b"".join(lines))
    journal = open_journal(path)
    assert journal.damaged == 1
    journal.close()
    _, server = _run(ANSWERS, tmp_path, count=5)
    assert len(server.asked) == 1


def test_one_process_alone_writes_a_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emocap_pretrain.captioning.journal._LOCK_WAIT_S", 0.0)
    journal = open_journal(tmp_path / "answers.journal")
    with pytest.raises(ConfigError, match="another process is writing"):
        open_journal(tmp_path / "answers.journal")
    journal.close()
    open_journal(tmp_path / "answers.journal").close()
    assert (tmp_path / "answers.journal").stat().st_mode & 0o777 == 0o600


def test_an_answer_is_used_only_after_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = os.fsync
    order: list[str] = []

    def fsync(file: int) -> None:
        synced(file)
        order.append("on the disk")

    noted = AnswerJournal._note

    def note(self: AnswerJournal, *words: Any) -> None:
        order.append("used")
        noted(self, *words)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(AnswerJournal, "_note", note)
    _run(ANSWERS, tmp_path, count=1)
    assert order == ["on the disk", "used"]
