"""Defines the documents in a run's folder, one type for each. docs/checkpoints.md shows where each document lies.

A new field needs a default value. If a field is renamed or its meaning changes, the `DocumentKind` of the document
needs an upgrade. The tests read the documents of every earlier release.

Somebody else may have written a document, so numbers have bounds. The id of a request becomes a part of a path, so it
must match a pattern. The classes are frozen: to change a document, a writer makes a new value with `replace`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.run_folder.report import Report, with_results
from emocap_pretrain.run_folder.results import Count, Finite, TaskResult
from emocap_pretrain.run_folder.storage import DocumentKind, renamed

Moment = Annotated[float, Field(ge=0, lt=1 << 37, allow_inf_nan=False)]  # Seconds since 1970, up to the year 6325.

MOST_PROFILED_STEPS = 1000
MOST_RANKS = 1 << 20  # A bound for the ranks in a request.


@dataclass(frozen=True, slots=True)
class RunDocument:
    """Holds `run.json`, which says which run the folder belongs to. The first attempt writes it before its first step.

    Args:
        run_id: MLflow's id of the run.
        config: The settings of the first attempt, as `config.stored` writes them.
        id: Random identifier of the run. A copy of the folder has the same identifier, until an attempt in the copy
            writes a new `run.json`.
        url: Address of the folder when this document was written. If the config takes the address from an environment
            variable, the address may be secret, and this field holds a salted SHA-256 digest of it.
        host: Name of the host that wrote this document. Local folders on two hosts may have the same address.
        parent: If this folder was copied from another run's folder, MLflow's id of that run; otherwise empty.
        warm_start: The checkpoint of another run with whose weights this run began; None for any other run.
    """

    run_id: str
    config: dict[str, Any]
    id: str = ""
    url: str = ""
    host: str = ""
    parent: str = ""
    warm_start: Parent | None = None


@dataclass(frozen=True, slots=True)
class StepResults:
    """Holds the evaluation results at one step of a run before its end.

    The document is `before_training.json` for step 0, and a file in the folder `evaluations` for each other step.

    Args:
        results: The result of each evaluation task.
        evaluation: The evaluation settings with which `results` were computed.
        checkpoint: SHA-256 of the manifest of the checkpoint that was evaluated; empty if an earlier version wrote
            this document.
    """

    results: tuple[TaskResult, ...]
    evaluation: dict[str, Any]
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class AttemptDocument:
    """Holds `attempts/00003/attempt.json`, which describes one launch of the run. Rank 0 writes it once.

    Args:
        number: Number of the attempt, from 1 on.
        at: When the attempt began, in seconds since 1970.
        ranks: World size.
    """

    number: Count = 0
    at: Moment | None = None
    ranks: Count | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Holds `attempts/00003/failed-00001.json`, which says why rank 1 of attempt 3 ended. That rank writes it.

    Args:
        rank: The rank that failed.
        host: Host of that rank.
        step: The step at which the rank failed.
        kind: Name of the error's class.
        message: The error's message, with secrets masked.
        final: Whether every further attempt would fail in the same way, for example because of a wrong setting.
        lost: Whether the error only says that another rank is gone.
        passing: Whether another service failed, so that a later attempt may succeed.
        at: When the failure was recorded, in seconds since 1970. Failures that differ only in this field are equal.
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
        section: "data", "forward" or "update". It is the section of a step in which the rank's time exceeds the median
            over all ranks by the most.
        factor: The rank's own time divided by the median of the own times of all ranks. The own time of a rank is the
            time that it spends in these three sections, in which it does not wait for other ranks.
        excess_s: The rank's own time minus the median of the own times, in seconds for each step.
        score: `excess_s` divided by a robust estimate of the standard deviation of the own times. The estimate is their
            scaled median absolute deviation, but at least 1 % of their median.
    """

    rank: Count
    host: str = ""
    section: str = ""
    factor: Finite = 1.0
    excess_s: Finite = 0.0
    score: Finite = 0.0


ENDED = "ended"  # The last state of `Status`.


@dataclass(frozen=True, slots=True)
class Status:
    """Holds `attempts/00003/status.json`, the state of an attempt. Rank 0 writes it every few seconds and at the end.

    Args:
        at: When this document was written, in seconds since 1970, by the clock of rank 0's host. That clock may be
            wrong, so the document's age is read from the store.
        state: "opening", "before_training", "training", "saving", "evaluating" or "ended".
        step: Number of optimizer steps that are done.
        phase: The phase of rank 0, one of `health.position.PHASES`.
        name: Name of the run.
        attempt: Number of the attempt.
        restarts: Number of earlier attempts of the run, whoever has started them.
        steps: Number of optimizer steps of the whole run.
        ranks: World size.
        hosts: The hosts of the ranks.
        loss: The loss that was logged last.
        samples_per_s: Samples per second over all ranks.
        eta_s: Expected seconds until the last step.
        slowest: The slowest rank of the newest logged step, even if it is hardly slower than the others. None before
            the first logged step, and in a job with a single rank.
        checkpoint: Step of the newest committed checkpoint.
        how: "done", "stopped" or "failed" once the attempt has ended; empty before.
        reason: Why the attempt has ended, as a text.
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
    loss: Finite | None = None
    samples_per_s: Finite | None = None
    eta_s: Annotated[Finite, Field(ge=0, lt=1 << 37)] | None = None
    slowest: Straggler | None = None
    checkpoint: Count | None = None
    how: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class StopRequest:
    """Holds `requests/stop.json`, which asks the run to save and end. `emocap stop` writes it; rank 0 deletes it."""

    at: Moment


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """Holds a file such as `requests/profile-7f3a.json`, which asks the run to profile its next `steps` steps.

    Args:
        id: Name of the request, which becomes a part of the paths of the request and of its answer.
        steps: How many steps are recorded.
        ranks: The ranks that record a trace; None means all ranks. Ranks that the job does not have are ignored.
        at: When the request was written, in seconds since 1970, by the clock of the user's host.
    """

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,32}$")]
    steps: Annotated[int, Field(ge=1, le=MOST_PROFILED_STEPS)]
    ranks: tuple[Annotated[int, Field(ge=0, lt=MOST_RANKS)], ...] | None = None
    at: Moment | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ProfileAnswer:
    """Holds a file such as `profiles/7f3a.json`, in which rank 0 answers a profile request.

    Args:
        steps: The first and the last step that are recorded; None if the request is refused.
        traces: Paths at which the traces will be, one for each recorded rank, relative to the run's folder.
        refused: Why the request is refused; empty if it is accepted.
    """

    steps: tuple[Count, Count] | None = None
    traces: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class SkippedDocument:
    """Holds `skipped.json`, which lists the steps whose loss caused a roll-back. Rank 0 writes it.

    In a roll-back the run returns to its newest checkpoint. When it reaches one of these steps again, it leaves the
    update of the step out. The keys of `steps` are the steps, and the values are the reasons of the roll-backs.
    """

    steps: Mapping[Annotated[int, Field(ge=0)], str]


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """Describes a damaged sample that was left out of the batch of `step`.

    `shard` and `key` identify the sample. `reason` says what is wrong with it.
    """

    shard: str
    key: str
    reason: str = ""
    step: Count = 0


@dataclass(frozen=True, slots=True)
class QuarantineDocument:
    """Holds `quarantine.json`, which lists the damaged samples that all ranks and attempts of the run have left out.

    Rank 0 writes it.
    """

    samples: tuple[QuarantinedSample, ...]


@dataclass(frozen=True, slots=True)
class UnsentDocument:
    """Holds `unsent.json`, the rows that MLflow does not have yet.

    A row is one report to MLflow, such as the metrics of a step. `tracking.spool.Row` defines its keys. Rank 0 writes
    such a document into each checkpoint, and into the run's folder at the end of an attempt.
    """

    rows: tuple[dict[str, Any], ...]


# Documents without upgrades of their own have schema 1, and their schema 0 (version 0.1.0) had the same fields.
RUN = DocumentKind(RunDocument)
STEP_RESULTS = DocumentKind(StepResults)
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
# Unsent rows may hold pictures and the metrics of a long outage, so their limit is 256 MiB.
UNSENT = DocumentKind(UnsentDocument, (lambda body: {"rows": body},), limit_bytes=1 << 28)
