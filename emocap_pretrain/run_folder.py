"""The folder of a run: which run it is, and its report once it is done.

<run>/run.json       config and tracker run of the first start; a later start must be the same run
<run>/report.json    written last
"""

import json
from dataclasses import dataclass
from typing import Any

from emocap_shards.errors import NotFound
from emocap_shards.store import Store

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation.report import Report

RUN, REPORT = "run.json", "report.json"
# What may change between two starts of one run: where, how long and how fast. The data are known by their digest.
FREE = (
    "steps",
    "name",
    "url",
    "data.url",
    "data.cache",
    "data.cache_gb",
    "cluster.",
    "checkpoint.",
    "health.",
    "micro_batch",
    "engine.zero_stage",
    "tracking.",
    "evaluation.",
    "data.workers",
    "data.prefetch",
    "data.error_budget",
    "objective.backend",
    "objective.schedule",
)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The run at a store's root."""

    store: Store

    def run_id(self, config: Config) -> str | None:
        """The tracker's run of an earlier start; None at the first.

        Raises:
            ConfigError: If the folder belongs to a run with other settings; it names the first that differs. Or if that
                cannot be read.
        """
        try:
            first = json.loads(self.store.read(RUN))
            before, run_id = dict[str, Any](first["config"]), str(first["run_id"])
        except NotFound:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.store.url}/{RUN} is damaged: restore it, or give the run another url.") from error
        _same_run(before, config.stored(), self.store.url)
        return run_id

    def begin(self, config: Config, run_id: str) -> None:
        self.store.put(RUN, json.dumps({"run_id": run_id, "config": config.stored()}, indent=1).encode())

    def report(self, steps: int) -> Report | None:
        """The report of a run that has done `steps` steps; None while it has not."""
        try:
            report = Report.parse(self.store.read(REPORT))
        except NotFound:
            return None
        return report if report.step >= steps else None

    def conclude(self, report: Report) -> None:
        self.store.put(REPORT, report.dump())


def _same_run(first: dict[str, Any], now: dict[str, Any], url: str) -> None:
    before, after = _leaves(first), _leaves(now)
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not _is_free(key):
            raise ConfigError(
                f"the run at {url} was started with {key}={before.get(key)!r}, now it is {after.get(key)!r}: "
                "put it back to resume, or give the new run another url."
            )


def _is_free(key: str) -> bool:
    return any(key.startswith(free) if free.endswith(".") else key == free for free in FREE)


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
