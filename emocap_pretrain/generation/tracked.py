"""Tracks the training and the scores of a captioner as one run in MLflow, over all attempts.

The user names the server in each command, because nothing that the folder of a captioner names is opened
(docs/security.md). The folder holds only the id of the run, in `tracked.json`.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.evaluation import tasks
from emocap_pretrain.generation.folder import CAPTIONER, CaptionerDocument, CaptionerFolder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.run_folder import storage, unsent
from emocap_pretrain.run_folder.storage import DocumentKind, Unreadable
from emocap_pretrain.tracking.spool import readable_rows
from emocap_pretrain.tracking.tracker import RunStatus, TrackedRun, Tracker

TRACKED = "tracked.json"


@dataclass(frozen=True, slots=True)
class TrackedDocument:
    """Holds the content of `tracked.json`: MLflow's id of the run."""

    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


TRACKED_KIND = DocumentKind(TrackedDocument)


def check(folder: CaptionerFolder, settings: TrackingConfig | None, everyone: RankGroup) -> None:
    """Checks that MLflow can be written, before patches or captions are computed. This is a collective.

    If the run exists, nothing is checked: its rows are kept in the folder while MLflow is unreachable.

    Raises:
        TrackingError: If MLflow is unreachable and the run is new, or if it refuses a write.
    """
    if settings:
        everyone.run_on_main(lambda: None if folder.store.exists(TRACKED) else _probe(settings))


def _probe(settings: TrackingConfig) -> None:
    from emocap_pretrain.tracking.mlflow_run import probe

    probe(settings)


@contextmanager
def tracked(
    folder: CaptionerFolder,
    document: CaptionerDocument,
    settings: TrackingConfig | None,
    everyone: RankGroup,
    number: int,
) -> Generator[Tracker | None]:
    """Yields the tracker of a captioner on rank 0, and None on the other ranks or without settings.

    The first call creates the run, and later ones continue it. When the block ends, the tracker is closed with the
    status FINISHED, FAILED after an error, or KILLED after Ctrl-C. This is a collective.

    Args:
        folder: The folder of the captioner.
        document: Its document, whose values become the params of the run.
        settings: Where the run is tracked; None tracks nothing.
        everyone: All ranks.
        number: The number of the newest attempt to train in this folder.

    Raises:
        ConfigError: If the file with the id of the run cannot be read.
        TrackingError: If MLflow is unreachable and the run is new, or if it does not know the run.
    """
    begun: list[Tracker] = []  # Only rank 0 adds its tracker: a tracker holds threads and cannot be broadcast.
    if settings:
        everyone.run_on_main(lambda: begun.append(_started(folder, document, settings, number)))
    tracker = begun[0] if begun else None
    status: RunStatus = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        if tracker:
            tracker.finish(status)
            unsent.write_or_warn(folder.store, tracker.unsent(), number=number)


def _started(folder: CaptionerFolder, document: CaptionerDocument, settings: TrackingConfig, number: int) -> Tracker:
    from emocap_pretrain.tracking.mlflow_tracker import MlflowTracker

    found = storage.read(folder.store, TRACKED, TRACKED_KIND)
    if isinstance(found, Unreadable):
        raise ConfigError(f"{found}: delete it to track the captioner as a new run.")
    # The charts of all other runs, because they are those of the whole experiment.
    run = TrackedRun(folder.path.name, settings, json.loads(CAPTIONER.dump(document)), tasks.charts())
    rows = readable_rows(unsent.read(folder.store))
    tracker = MlflowTracker.start(run, found.run_id if found else None, number=number, unsent=rows)
    if not found:
        storage.write(folder.store, TRACKED, TRACKED_KIND, TrackedDocument(tracker.run_id))
    return tracker
