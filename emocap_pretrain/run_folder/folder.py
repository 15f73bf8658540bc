"""Finds out which run a folder belongs to, and reads and writes the report of a finished run.

<run>/run.json       the MLflow run and the settings of the first attempt, with which later settings are compared
<run>/report.json    the results of the finished run, written last

The folder identifies the run: the same `url` resumes the same run, and another experiment needs another `url` (decision
6). The only exception is a copy of a folder, which is a new run. `RunFolder.copied_from` recognizes a copy (decision
21).
"""

import hashlib
import logging
import socket
import uuid
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from emocap_shards.errors import StoreError
from emocap_shards.mask import masked
from emocap_shards.store import RetryConfig, Store, open_store

from emocap_pretrain.config import stored
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.run_folder import storage
from emocap_pretrain.run_folder.documents import REPORT, RUN, RunDocument
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.report import Report
from emocap_pretrain.run_folder.storage import Unreadable, read_repeatedly

RUN_FILE, REPORT_FILE = "run.json", "report.json"

DIGEST = "sha256:"  # The prefix of a recorded address of which only the digest is stored.
LOOKUP_RETRIES = RetryConfig(deadline_s=20.0)  # For the store at the address that `run.json` records.

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Reads and writes `run.json` and `report.json` in the folder of a run, which is the root of `store`."""

    store: Store

    def run_id(self, config: Config) -> str | None:
        """Returns MLflow's id of the run that the folder belongs to; None if the folder has no `run.json` yet.

        Raises:
            ConfigError: If the folder belongs to a run with other settings (the message names the first setting that
                differs), or if `run.json` cannot be read.
        """
        first = storage.read(self.store, RUN_FILE, RUN)
        if isinstance(first, Unreadable):
            raise ConfigError(f"{first}: restore it, or give the run another url.")
        if first is None:
            return None
        _require_same_run(first.config, config, self.store.url)
        return first.run_id

    def settings(self) -> dict[str, Any] | None:
        """Returns the settings of the first attempt, as they are stored; None if there is no readable `run.json`."""
        first = storage.read(self.store, RUN_FILE, RUN)
        return first.config if isinstance(first, RunDocument) else None

    def warm_start(self) -> Parent | None:
        """Returns the checkpoint of another run with whose weights this run began; None if `run.json` names none."""
        document = storage.read(self.store, RUN_FILE, RUN)
        return document.warm_start if isinstance(document, RunDocument) else None

    def write_run(self, config: Config, run_id: str, *, parent: str = "", warm_start: Parent | None = None) -> None:
        """Writes `run.json`, so that the folder belongs to this run from then on.

        Args:
            config: The run's settings.
            run_id: MLflow's id of the run.
            parent: If this folder was copied from another run's folder, MLflow's id of that run.
            warm_start: The checkpoint of another run with whose weights this run began.
        """
        # The new random id separates this folder from the folder of which it may be a copy.
        settings, identity = stored.dump(config), uuid.uuid4().hex
        # An address from an environment variable may be a secret: only its digest is stored, for later comparison.
        url = _digest(self.store.url, identity) if "${" in str(settings["url"]) else self.store.url
        warm_start = replace(warm_start, url=masked(warm_start.url)) if warm_start else None
        document = RunDocument(run_id, settings, identity, url, socket.gethostname(), parent, warm_start)
        storage.write(self.store, RUN_FILE, RUN, document)

    def copied_from(self) -> str:
        """Returns MLflow's id of the original run if this folder is a copy of that run's folder; otherwise "".

        `run.json` records the address of the original folder. If the same run is still at that address, this folder is
        a copy, unless both addresses lead to one folder (through a mount, a link or another endpoint). If the run is
        not there any more, its folder was moved here.

        If the recorded address cannot be looked up, for example because it is a local path of another host, this folder
        counts as a copy. If it is in fact no copy, the run continues as a second run in MLflow. This is better than one
        MLflow run for two folders. A `run.json` of version 0.1.0 may contain the name of an environment variable
        instead of the address. That address cannot be looked up either, but the folder does not count as a copy.

        To find out whether both addresses lead to one folder, the method writes a probe file to this folder, looks for
        it at the other address, and deletes it.

        Raises:
            StoreError: If this folder's own store does not answer when `run.json` is read.
        """
        document = storage.read(self.store, RUN_FILE, RUN)
        if not isinstance(document, RunDocument):
            return ""
        try:
            return document.run_id if self._is_copy(document) else ""
        except (StoreError, OSError) as error:
            log.warning(
                "the recorded address of %s cannot be looked up: it counts as a copy: %s", self.store.url, error
            )
            return document.run_id

    def _is_copy(self, document: RunDocument) -> bool:
        # Version 0.1.0 recorded the address only as the setting `url`.
        recorded = document.url or str(document.config.get("url", ""))
        # A text with `${` names a variable of the environment. It is not resolved, so it cannot be compared.
        if "${" in recorded or recorded in {self.store.url, _digest(self.store.url, document.id)}:
            return False
        # From here on the recorded address differs from this folder's address.
        if recorded.startswith(DIGEST) or not _may_be_contacted(recorded, self.store.url):
            return True  # It cannot be looked up, and in doubt the folder counts as a copy.
        other = open_store(recorded, patience=LOOKUP_RETRIES)
        if other.url == self.store.url:
            return False
        if _holds(other, document):
            return not _is_same(self.store, other)
        # Nothing lies at the recorded address, so the folder was moved. That is not known for a local path that another
        # host has recorded: the folder of that host cannot be seen from here.
        return other.is_near and document.host not in {"", socket.gethostname()}

    def report(self, steps: int) -> Report | None:
        """Returns the report of the run; None if there is no report, or if it belongs to a step before `steps`.

        The report of a run that ended early counts as one of its last step.

        If the report cannot be read, the result is None too, and the next attempt evaluates the last checkpoint again.
        """
        report = storage.read(self.store, REPORT_FILE, REPORT)
        if isinstance(report, Unreadable):
            log.warning("%s: the run is evaluated again", report)
            return None
        return report if report and (report.step >= steps or report.early_end) else None

    def write_report(self, report: Report) -> None:
        """Writes `report.json`, so that the run counts as done from then on."""
        storage.write(self.store, REPORT_FILE, REPORT, report)


def _may_be_contacted(recorded: str, own: str) -> bool:
    """Returns whether the address that `run.json` records may be looked up.

    The recorded address must be a local path, or lie in the same bucket or on the same server as this folder, whose
    address is `own`. Another person may have written `run.json`, and could otherwise make this process contact any
    server.
    """
    other, this = urlsplit(recorded), urlsplit(own)
    return other.scheme in {"", "file"} or (other.scheme, other.netloc) == (this.scheme, this.netloc)


def _holds(store: Store, document: RunDocument) -> bool:
    """Returns whether the store's `run.json` belongs to the same run as the document.

    The result is also True if the store has a `run.json` that cannot be read. If there is no `run.json`, the function
    looks for it several times, because a store may answer with an older state.
    """
    found = next(filter(None, read_repeatedly(lambda: storage.read(store, RUN_FILE, RUN))), None)
    # Both ids are compared, because version 0.1.0 wrote no `id`.
    if isinstance(found, RunDocument):
        return (found.id, found.run_id) == (document.id, document.run_id)
    return found is not None


def _is_same(store: Store, other: Store) -> bool:
    """Returns whether two stores lead to the same folder.

    It puts a probe file into `store`, looks for it in `other`, and deletes it.
    """
    path = f"probe-{uuid.uuid4().hex}"
    store.put(path, b"")
    try:
        return other.exists(path)
    finally:
        store.delete(path)


def _digest(url: str, salt: str) -> str:
    return f"{DIGEST}{hashlib.sha256(f'{salt} {url}'.encode()).hexdigest()}"


def _require_same_run(first: dict[str, Any], config: Config, url: str) -> None:
    """Checks that the config differs from that of the first attempt only in settings that may change during a run.

    Args:
        first: The settings of the first attempt, from `run.json`.
        config: The config of this attempt.
        url: The run's folder, for the message.

    Raises:
        ConfigError: If a setting differs that must not change. The message names the first such setting.
    """
    before = stored.current(first)
    for key, then, now in stored.differences(before, stored.current(config.stored())):
        raise ConfigError(
            f"the run at {url} was started with {key}={_value(then)}, now it is {_value(now)}: "
            "put it back to resume, or give the new run another url."
        )


def _value(value: Any) -> str:
    return "nothing" if value is None else repr(value)
