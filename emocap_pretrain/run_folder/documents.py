"""Defines the documents in a run's folder, one type for each. docs/checkpoints.md shows where each one lies.

A field that is added gets a default. A field that is renamed, or whose meaning changes, gets an upgrade: the upgrades
of a kind are listed beside it, and the tests read the documents of every earlier release.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from emocap_pretrain.run_folder.report import Report, with_results
from emocap_pretrain.run_folder.storage import DocumentKind, renamed

Count = Annotated[int, Field(ge=0, le=1 << 53)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=0, lt=1 << 37, allow_inf_nan=False)]  # Seconds since 1970, up to the year 6325.

MOST_PROFILED_STEPS = 1000
MOST_RANKS = 1 << 20


@dataclass(frozen=True, slots=True)
class RunDocument:
    """Holds `run.json`: which run the folder belongs to; written by the first attempt, before the first step.

    Args:
        run_id: MLflow's id of the run.
        config: The settings of the first attempt, as `config.stored` writes them.
        id: A random name. A copy of the folder has the same one, until an attempt in the copy makes it another run.
        url: Address of the folder when this was written; a digest of it if it came from an environment variable.
        host: Name of the host that wrote this, which matters if the folder is local.
        parent: MLflow's id of the run of whose folder this one is a copy; empty if it is not a copy.
    """

    run_id: str
    config: dict[str, Any]
    id: str = ""
    url: str = ""
    host: str = ""
    parent: str = ""


@dataclass(frozen=True, slots=True)
class AttemptDocument:
    """Holds `attempts/00003/attempt.json`: one launch of the run; put only if absent, by rank 0.

    Args:
        number: Number of the attempt, from 1 on.
        at: When it began, in seconds since 1970.
        ranks: World size.
    """

    number: Count = 0
    at: Moment | None = None
    ranks: Count | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Holds `attempts/00003/failed-00001.json`: why rank 1 of attempt 3 ended; written by that rank.

    Args:
        rank: The rank that failed.
        host: Its host.
        step: The step at which it failed.
        kind: Name of the error's class.
        message: The error's message, with secrets masked.
        final: Whether every further attempt would fail alike, such as with a wrong setting.
        lost: Whether the error only says that another rank is gone.
        passing: Whether another service was down, so that a later attempt may succeed.
        at: When it was recorded, in seconds since 1970.
    """

    rank: Count
    host: str = ""
    step: Count = 0
    kind: str = ""
    message: str = ""
    final: bool = False
    lost: bool = False
    passing: bool = False
    at: Moment | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Straggler:
    """Describes the slowest rank, for which the others wait.

    Args:
        rank: The rank.
        host: The host of the rank.
        section: The section of a step in which it loses most of the time.
        factor: Its time of its own in a step, in multiples of the median rank's.
        excess_s: The seconds by which it is slower than the median rank in each step.
        score: Its distance from the median in robust standard deviations.
    """

    rank: Count
    host: str = ""
    section: str = ""
    factor: Number = 1.0
    excess_s: Number = 0.0
    score: Number = 0.0


State = Literal["opening", "training", "saving", "evaluating", "ended"]
ENDED: State = "ended"


@dataclass(frozen=True, slots=True)
class Status:
    """Holds `attempts/00003/status.json`: the state of an attempt; rank 0 writes it every few seconds and at its end.

    Args:
        at: When it was written, by the clock of rank 0's host. Only the store's clock says how long ago that is.
        state: "opening", "training", "saving", "evaluating" or "ended".
        step: Optimizer steps done.
        phase: The section of a step, or another phase, in which rank 0 is.
        name: Name of the run.
        attempt: Number of the attempt.
        restarts: How often the cluster has restarted the job.
        steps: Optimizer steps that the run does in total.
        ranks: World size.
        hosts: The hosts of the ranks.
        loss: The loss that was logged last.
        samples_per_s: Samples per second over all ranks.
        eta_s: Expected seconds until the last step.
        slowest: The rank that slows the others, if there is one.
        checkpoint: Step of the newest committed checkpoint.
        how: "done", "stopped" or "failed" once it has ended; empty before.
        reason: Why it has ended, as a text.
    """

    at: Moment
    state: str = "opening"
    step: Count = 0
    phase: str = ""
    name: str = ""
    attempt: Count = 0
    restarts: Count | None = None
    steps: Count | None = None
    ranks: Count | None = None
    hosts: tuple[str, ...] = ()
    loss: Number | None = None
    samples_per_s: Number | None = None
    eta_s: Annotated[Number, Field(ge=0, lt=1 << 37)] | None = None
    slowest: Straggler | None = None
    checkpoint: Count | None = None
    how: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Holds `requests/stop.json`: a request to save and end; written by `emocap stop`, deleted by rank 0."""

    at: Moment


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Describes a request to record the next `steps` steps on `ranks`, where None means all ranks.

    It is stored in a file such as `requests/profile-7f3a.json`.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,32}$")]
    steps: Annotated[int, Field(ge=1, le=MOST_PROFILED_STEPS)]
    ranks: tuple[Annotated[int, Field(ge=0, lt=MOST_RANKS)], ...] | None = None
    at: Moment | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ProfileAnswer:
    """Holds `profiles/7f3a.json`: the answer of rank 0 to a profile request.

    Args:
        steps: The first and the last step that are recorded.
        traces: Paths at which the traces will be, one for each rank, relative to the run's folder.
        refused: Why the request is refused; empty if it is not.
    """

    steps: tuple[Count, Count] | None = None
    traces: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class SkippedDocument:
    """Holds `skipped.json`: steps whose update is left out after a rollback, with the reason; written by rank 0."""

    steps: Mapping[Annotated[int, Field(ge=0)], str]


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """Describes a damaged sample that was left out of `step`."""

    shard: str
    key: str
    reason: str = ""
    step: Count = 0


@dataclass(frozen=True, slots=True)
class QuarantineDocument:
    """Holds `quarantine.json`: all damaged samples that the run left out, over all ranks and attempts; by rank 0."""

    samples: tuple[QuarantinedSample, ...]


@dataclass(frozen=True, slots=True)
class UnsentDocument:
    """Holds `unsent.json`, in the run's folder and in each checkpoint: rows that MLflow does not have yet; by rank 0.

    The tracker defines what a row holds; see `tracking.spool.Row`.
    """

    rows: tuple[dict[str, Any], ...]


RUN = DocumentKind(RunDocument)
ATTEMPT = DocumentKind(AttemptDocument)
FAILURE = DocumentKind(Failure)
STATUS = DocumentKind(Status, (renamed({"start": "attempt"}),))
STOP_REQUEST = DocumentKind(StopRequest)
PROFILE_REQUEST = DocumentKind(ProfileRequest)
PROFILE_ANSWER = DocumentKind(ProfileAnswer)
REPORT = DocumentKind(Report, (lambda body: body, with_results))
# Version 0.1.0 wrote these as a bare mapping of steps and as bare lists.
SKIPPED = DocumentKind(SkippedDocument, (lambda body: {"steps": body},))
QUARANTINE = DocumentKind(QuarantineDocument, (lambda body: {"samples": body},))
UNSENT = DocumentKind(UnsentDocument, (lambda body: {"rows": body},), limit_bytes=1 << 28)
