"""Which run a folder belongs to, and its report once it is done.

<run>/run.json       settings and tracker run of the first attempt; a later attempt must be the same run
<run>/report.json    written last
"""

import logging
from dataclasses import dataclass
from typing import Any

from emocap_shards.store import Store

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import REPORT, RUN, RunDocument
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.storage import Unreadable

RUN_FILE, REPORT_FILE = "run.json", "report.json"
# What may change between two attempts of one run: where, how long and how fast. The data are known by their digest.
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

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The run at a store's root."""

    store: Store

    def run_id(self, config: Config) -> str | None:
        """The tracker's run of an earlier attempt; None at the first.

        Raises:
            ConfigError: If the folder belongs to a run with other settings; it names the first that differs. Or if that
                cannot be read.
        """
        first = storage.read(self.store, RUN_FILE, RUN)
        if isinstance(first, Unreadable):
            raise ConfigError(f"{first}: restore it, or give the run another url.")
        if first is None:
            return None
        _same_run(first.config, config.stored(), self.store.url)
        return first.run_id

    def begin(self, config: Config, run_id: str) -> None:
        storage.write(self.store, RUN_FILE, RUN, RunDocument(run_id, config.stored()))

    def report(self, steps: int) -> Report | None:
        """The report of a run that has done `steps` steps; None while it has not.

        One that cannot be read counts as missing: the next attempt evaluates the last checkpoint again and replaces it.
        """
        report = storage.read(self.store, REPORT_FILE, REPORT)
        if isinstance(report, Unreadable):
            log.warning("%s: the run is evaluated again", report)
            return None
        return report if report and report.step >= steps else None

    def conclude(self, report: Report) -> None:
        storage.write(self.store, REPORT_FILE, REPORT, report)


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
