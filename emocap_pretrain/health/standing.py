"""How a run stands and how its starts ended, read from its folder by somebody else than the run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain import starts
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.health.status import ENDED
from emocap_pretrain.starts import Failure

STALE_S, DEAD_S = 20.0, 60.0  # A status is written every 5 s.
SMALL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StartStory:
    """One start: what it was, its last status, and why it ended if it left word."""

    number: int
    facts: Mapping[str, Any]
    status: Mapping[str, Any]
    cause: Failure | None

    @property
    def step(self) -> int:
        """The last that is known."""
        return max(int(self.status.get("step", 0)), self.cause.step if self.cause else 0)

    def silent_s(self, now_s: float) -> float:
        """Since its last word."""
        return max(0.0, now_s - float(self.status.get("at", self.facts["at"])))

    def alive(self, now_s: float) -> bool:
        return self.status.get("state") != ENDED and self.silent_s(now_s) < DEAD_S

    def ending(self, *, newest: bool, now_s: float) -> str:
        """How it ended, in words; nothing while it runs."""
        cause = self.cause
        if cause and not cause.lost:
            return f"rank {cause.rank} ({cause.host}): {cause.kind}: {cause.message}"
        if self.status.get("state") == ENDED:
            reason = self.status.get("reason")
            return f"{self.status['how']}{f': {reason}' if reason else ''}"
        if cause:
            return cause.message
        if newest and self.alive(now_s):
            return ""
        return "without a word: killed, or its host is gone"


@dataclass(frozen=True, slots=True)
class Standing:
    """A run's starts, ascending; the newest is the run."""

    url: str
    stories: tuple[StartStory, ...]

    @classmethod
    def read(cls, store: Store, *, last: int = 10) -> "Standing":
        """The standing of the run at the store's root.

        Args:
            store: Of the run.
            last: So many of its starts.

        Raises:
            ConfigError: If no run was ever started there.
        """
        numbers = starts.numbers(store)[-last:]
        if not numbers:
            raise ConfigError(f"no run was ever started at {store.url}: check the url, it is the `url` of the config.")
        return cls(store.url, tuple(_story(store, number) for number in numbers))

    @property
    def newest(self) -> StartStory:
        return self.stories[-1]

    def to_json(self, now_s: float) -> dict[str, Any]:
        newest = self.newest
        return {
            "url": self.url,
            "alive": newest.alive(now_s),
            "silent_s": round(newest.silent_s(now_s), 1),
            "status": dict(newest.status),
            "starts": [
                {
                    "number": story.number,
                    "facts": dict(story.facts),
                    "step": story.step,
                    "ended": story.ending(newest=story is newest, now_s=now_s),
                }
                for story in self.stories
            ],
        }


def _story(store: Store, number: int) -> StartStory:
    facts = json.loads(store.read(f"{starts.FOLDER}/{number:05d}/{starts.START}", limit_bytes=SMALL_BYTES))
    try:
        status = starts.status(store, number)
    except NotFound:
        status = {}
    return StartStory(number, facts, status, starts.cause(starts.failures(store, number)))
