"""How a run stands and how its attempts ended, read from its folder by somebody else than the run."""

from dataclasses import asdict, dataclass
from typing import Any

from emocap_shards.store import Store

from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import attempts
from emocap_pretrain.run_folder.documents import ENDED, AttemptDocument, Failure, Status

STALE_S, DEAD_S = 20.0, 60.0  # A status is written every 5 s.


@dataclass(frozen=True, slots=True)
class AttemptState:
    """One attempt: what it was, its last status, and why it ended if a rank recorded that."""

    number: int
    launched: AttemptDocument
    status: Status | None
    cause: Failure | None

    @property
    def step(self) -> int:
        """The last that is known."""
        return max(self.status.step if self.status else 0, self.cause.step if self.cause else 0)

    @property
    def how(self) -> str:
        """How it ended: "done", "stopped" or "failed"; "" before that."""
        return self.status.how if self.status else ""

    @property
    def reason(self) -> str:
        """Why it ended, as far as it said so itself."""
        return self.status.reason if self.status else ""

    def silent_s(self, now_s: float) -> float:
        """Since its last word."""
        return max(0.0, now_s - ((self.status.at if self.status else self.launched.at) or 0.0))

    def alive(self, now_s: float) -> bool:
        ended = self.status is not None and self.status.state == ENDED
        return not ended and self.silent_s(now_s) < DEAD_S

    def ending(self, *, newest: bool, now_s: float) -> str:
        """How it ended, in words; nothing while it runs."""
        cause = self.cause
        if cause and not cause.lost:
            return f"rank {cause.rank} ({cause.host}): {cause.kind}: {cause.message}"
        if self.status and self.status.state == ENDED:
            return f"{self.status.how}: {self.status.reason}" if self.status.reason else self.status.how
        if cause:
            return cause.message
        if newest and self.alive(now_s):
            return ""
        return "without a word: killed, or its host is gone"


@dataclass(frozen=True, slots=True)
class RunState:
    """A run's attempts, ascending; the newest is the run."""

    url: str
    attempts: tuple[AttemptState, ...]

    @classmethod
    def read(cls, store: Store, *, last: int = 10) -> "RunState":
        """The state of the run at the store's root.

        Args:
            store: Of the run.
            last: So many of its attempts.

        Raises:
            ConfigError: If no run was ever started there.
        """
        numbers = attempts.numbers(store)[-last:]
        if not numbers:
            raise ConfigError(f"no run was ever started at {store.url}: check the url, it is the `url` of the config.")
        return cls(store.url, tuple(_attempt(store, number) for number in numbers))

    @property
    def newest(self) -> AttemptState:
        return self.attempts[-1]

    def to_json(self, now_s: float) -> dict[str, Any]:
        newest = self.newest
        return {
            "url": self.url,
            "alive": newest.alive(now_s),
            "silent_s": round(newest.silent_s(now_s), 1),
            "status": _told(newest.status),
            "attempts": [
                {
                    "number": each.number,
                    "launched": _told(each.launched),
                    "step": each.step,
                    "ended": each.ending(newest=each is newest, now_s=now_s),
                }
                for each in self.attempts
            ],
        }


def _told(document: Status | AttemptDocument | None) -> dict[str, Any]:
    """What is known of it."""
    return {name: value for name, value in asdict(document).items() if value is not None} if document else {}


def _attempt(store: Store, number: int) -> AttemptState:
    launched, status = attempts.launched(store, number), attempts.status(store, number)
    return AttemptState(
        number,
        launched if isinstance(launched, AttemptDocument) else AttemptDocument(number),
        status if isinstance(status, Status) else None,
        attempts.cause(attempts.failures(store, number)),
    )
