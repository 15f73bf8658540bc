"""Asks a captioner for the captions of all faces of a source, many at a time, and stores each answer before it is used.

A face whose final answer is stored is not asked for again. The first request is sent alone: it shows whether the
endpoint, the key and the model are right before hundreds of requests fail, and it fills the endpoint's cache of
prefixes.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import TypeVar

from emocap_shards.background import in_order
from emocap_shards.writing.row import BadRow, SourceRow

from emocap_pretrain.captioning.faces import UNREADABLE, Labels, facts_of, jpeg_of, read_face
from emocap_pretrain.captioning.journal import AnswerJournal, StoredAnswer
from emocap_pretrain.captioning.protocol import (
    CaptionAnswer,
    FaceCaptioner,
    FaceToCaption,
    request_digest,
)
from emocap_pretrain.errors import CaptioningError, EndpointStopped, NoAnswer

_READERS = 4
_AHEAD = 64  # Faces that are read in advance.
_TRIALS = 3  # Requests that are sent alone before the command gives up.

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptioningSettings:
    """Holds how faces are captioned.

    Attributes:
        prompt: Title of the prompt, which is stored with each answer.
        concurrency: Requests at the same time.
        asks: Requests for one face at most, if its answers cannot be used.
        facts: Patterns of the labels that are sent as known facts.
        longest_px: Longer side of an image that is sent, at most.
        most_cost: No request is sent once the answers of this output have cost that much; None is no limit.
        most_faces: Number of faces of the source that are looked at; None is all.
    """

    prompt: str
    concurrency: int = 64
    asks: int = 3
    facts: tuple[str, ...] = ()
    longest_px: int = 768
    most_cost: float | None = None
    most_faces: int | None = None


@dataclass(frozen=True, slots=True)
class FaceRow:
    """Holds a row of the source after its files were read.

    Attributes:
        key: Key of the sample; of a row that cannot be read, its place.
        request: Digest of the request, by which the journal finds its answer; "" if the row cannot be read.
        problem: Why the row cannot be read, or "".
        labels: All labels of the row.
        face: What is sent; None if a final answer is stored already, or the row cannot be read.
    """

    key: str
    request: str
    problem: str = ""
    labels: Labels = field(default_factory=dict[str, str | float])
    face: FaceToCaption | None = None


@dataclass(slots=True)
class CaptioningReport:
    """Counts what a run has done.

    Attributes:
        faces: Rows of the source that were looked at.
        stored: Faces whose final answer an earlier run had stored.
        captioned: Faces that got a caption in this run.
        repeated: Requests that were sent again because an earlier run had died before their answer was stored.
        reasons: How often each reason occurred as the last answer for a face.
        unanswered: Faces for which no answer arrived; the next run asks again.
        unreadable: Rows that cannot be read.
        repairs: How often each repair of an answer was made.
        unusable: Answers that could not be used, including those after which another request was sent.
        prompt_tokens: Tokens of the prompts that the endpoint has counted.
        completion_tokens: Tokens of the answers that the endpoint has counted.
        cached_tokens: Tokens of the prompts that came from its cache.
        cost: Cost of the answers of this run whose cost is known.
        unknown_costs: Answers of this run whose cost is unknown.
        last_failure: The message of the last face without an answer.
    """

    faces: int = 0
    stored: int = 0
    captioned: int = 0
    repeated: int = 0
    reasons: Counter[str] = field(default_factory=Counter[str])
    unanswered: int = 0
    unreadable: int = 0
    repairs: Counter[str] = field(default_factory=Counter[str])
    unusable: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cost: float = 0.0
    unknown_costs: int = 0
    last_failure: str = ""

    @property
    def finished(self) -> int:
        """Returns the number of rows for which nothing is left to do in this run."""
        return self.stored + self.captioned + sum(self.reasons.values()) + self.unanswered + self.unreadable

    def add(self, answer: CaptionAnswer) -> None:
        """Counts the tokens, the cost and the repairs of an answer."""
        usage = answer.usage
        self.prompt_tokens += usage.prompt or 0
        self.completion_tokens += usage.completion or 0
        self.cached_tokens += usage.cached or 0
        self.cost += usage.cost or 0.0
        self.unknown_costs += usage.cost is None
        self.unusable += answer.caption is None
        self.repairs.update(answer.repairs)


class CaptioningRun:
    """Captions the faces of a source.

    Args:
        captioner: The captioner.
        journal: The open journal of the output.
        settings: The settings.
        show: Called after each change of the report.
        note: Called with each row in the order of the source, before its face is captioned, in another thread.
    """

    def __init__(
        self,
        captioner: FaceCaptioner,
        journal: AnswerJournal,
        settings: CaptioningSettings,
        show: Callable[[CaptioningReport], object] = lambda _: None,
        note: Callable[[FaceRow], object] = lambda _: None,
    ) -> None:
        self._captioner, self._journal, self._settings = captioner, journal, settings
        self._show, self._note = show, note
        self.report = CaptioningReport()
        self.stopped_at_cost = False
        self._failed_in_a_row = 0

    async def caption(self, rows: Iterable[SourceRow | BadRow]) -> CaptioningReport:
        """Captions all faces, and returns the report.

        Raises:
            CaptioningError: If no request can succeed any more, or an answer cannot be stored. All answers that have
                arrived before are stored.
        """
        with ThreadPoolExecutor(1, "emocap-faces") as taker, ThreadPoolExecutor(_READERS, "emocap-read") as readers:
            # One thread alone iterates over the rows, which it reads from a disk or a store. It takes several at a
            # time, because on a busy host each change between threads takes milliseconds.
            open_faces = self._open(rows, readers)
            line, waiting = asyncio.Lock(), deque[FaceRow]()

            async def take() -> FaceRow | None:
                async with line:
                    if not waiting:
                        # The first face is sent alone, and waits for no other.
                        together = max(1, self._settings.concurrency // 4) if self.report.finished else 1
                        waiting.extend(await _in(taker, lambda: list(islice(open_faces, together))))
                    return waiting.popleft() if waiting and not self._is_spent() else None

            try:
                if await self._begin(take):
                    await self._all(take)
            finally:
                await _in(taker, open_faces.close)
        return self.report

    def _open(self, rows: Iterable[SourceRow | BadRow], readers: ThreadPoolExecutor) -> Generator[FaceRow]:
        """Yields the rows for which a request has to be sent. Another thread iterates."""
        seen = set[str]()
        for number, row in enumerate(in_order(readers, self._read, rows, ahead=_AHEAD)):
            if self._settings.most_faces is not None and number >= self._settings.most_faces:
                return
            self._note(row)
            self.report.faces += 1
            if row.problem:
                self.report.unreadable += 1
            elif row.face is None or row.request in seen:
                self.report.stored += 1
            else:
                seen.add(row.request)
                yield row

    def _read(self, row: SourceRow | BadRow) -> FaceRow:
        """Reads the files of a row, and makes the image that is sent if there is no final answer. Readers call this."""
        if isinstance(row, BadRow):
            return FaceRow(row.where or row.file, "", str(row))
        try:
            read = read_face(row)
            facts = facts_of(read.labels, self._settings.facts)
            request = request_digest(read.key, read.digest, facts, self._captioner)
            if self._is_done(request):
                return FaceRow(read.key, request, "", read.labels)
            jpeg = jpeg_of(read.data, self._settings.longest_px)
        except UNREADABLE as error:
            return FaceRow(row.key, "", f"{row.where}: {error}")
        face = FaceToCaption(key=read.key, jpeg=jpeg, digest=read.digest, facts=facts)
        return FaceRow(read.key, request, "", read.labels, face)

    def _is_done(self, request: str) -> bool:
        state = self._journal.state(request)
        return state.final or state.asks >= self._settings.asks

    def _is_spent(self) -> bool:
        most = self._settings.most_cost
        self.stopped_at_cost = self.stopped_at_cost or (most is not None and self._journal.spent >= most)
        return self.stopped_at_cost

    async def _begin(self, take: Callable[[], Awaitable[FaceRow | None]]) -> bool:
        """Captions faces one after the other until an answer arrives. Returns whether there may be more faces."""
        for _ in range(_TRIALS):
            row = await take()
            if row is None:
                return False
            unanswered = self.report.unanswered
            await self._one(row)
            if self.report.unanswered == unanswered:
                return True
        raise EndpointStopped(
            f"the endpoint has answered none of the first {_TRIALS} faces. {self.report.last_failure}"
        )

    async def _all(self, take: Callable[[], Awaitable[FaceRow | None]]) -> None:
        """Captions all other faces, with `concurrency` requests at a time."""
        errors: list[CaptioningError] = []

        async def work() -> None:
            while not errors and (row := await take()) is not None:
                try:
                    await self._one(row)
                except EndpointStopped as error:
                    # The other requests that are under way may still be answered.
                    errors.append(error)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._settings.concurrency):
                    group.create_task(work())
        except ExceptionGroup as failed:
            # Such as a full disk: nothing could be stored any more, so the other requests were cancelled.
            raise failed.exceptions[0] from None
        if errors:
            raise errors[0]

    async def _one(self, row: FaceRow) -> None:
        """Asks for one face until an answer is final or the last ask was made."""
        assert row.face is not None, "a row without a face is not asked for"
        state = self._journal.state(row.request)
        self.report.repeated += state.is_under_way
        ask, reason = state.asks, state.reason
        try:
            while True:
                ask += 1
                self._journal.sent(row.request, ask)
                answer = await self._captioner.caption(row.face, ask=ask, earlier=reason)
                await self._journal.store(self._stored(row, ask, answer))
                self._failed_in_a_row = 0
                self.report.add(answer)
                reason = answer.reason
                if answer.final or ask >= self._settings.asks:
                    break
                if self._is_spent():
                    return
        except NoAnswer as error:
            self._unanswered(error)
        else:
            self.report.captioned += answer.caption is not None
            if reason:
                self.report.reasons[reason] += 1
        self._show(self.report)

    def _stored(self, row: FaceRow, ask: int, answer: CaptionAnswer) -> StoredAnswer:
        at = datetime.now(UTC).isoformat(timespec="seconds")
        return StoredAnswer(id=row.request, key=row.key, ask=ask, prompt=self._settings.prompt, answer=answer, at=at)

    def _unanswered(self, error: NoAnswer) -> None:
        self.report.unanswered += 1
        self.report.last_failure = str(error)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= max(10, self._settings.concurrency):
            count = self._failed_in_a_row
            raise EndpointStopped(f"the endpoint has answered none of the last {count} faces. {error}")


async def _in(pool: ThreadPoolExecutor, act: Callable[[], _Result]) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(pool, partial(act))
