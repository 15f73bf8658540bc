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
    """`run.json`: which run the folder belongs to; written by the first attempt, before the first step.

    Args:
        run_id: MLflow's name for the run.
        config: The settings of the first attempt, as `config.stored` writes them.
        id: A random name that a copy of the folder has too, until an attempt in the copy makes it another run.
        url: Where the folder was when this was written, and `host`: on which host, for a local folder. A digest where
            the environment gave the address.
        parent: MLflow's name for the run of whose folder this one is a copy.
    """

    run_id: str
    config: dict[str, Any]
    id: str = ""
    url: str = ""
    host: str = ""
    parent: str = ""


@dataclass(frozen=True, slots=True)
class AttemptDocument:
    """`attempts/00003/attempt.json`: one launch of the run; put only if absent, by rank 0."""

    number: Count = 0
    at: Moment | None = None
    ranks: Count | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """`attempts/00003/failed-00001.json`: why rank 1 of attempt 3 ended; written by that rank.

    `kind` is the error's class, `step` the one that it was at. `final` failures come again at every try (a wrong
    setting); `lost` ones only say that another rank is gone; `passing` ones are outages of something else.
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
    """The slowest rank, for which the others wait.

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
    """`attempts/00003/status.json`: the state of an attempt; rank 0 writes it every few seconds and once at its end.

    Args:
        at: When it was written, by the clock of rank 0's host. Only the store's clock says how long ago that is.
        state: "opening", "training", "saving", "evaluating" or "ended".
        how: Once it has ended: "done", "stopped" or "failed"; `reason` says why, in words.
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
    """`requests/stop.json`: save and end; written by whoever asks, deleted by rank 0."""

    at: Moment


@dataclass(frozen=True, slots=True)
class ProfileRequest:
    """`requests/profile-7f3a.json`: record the next `steps` steps on these ranks; None is all."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]{1,32}$")]
    steps: Annotated[int, Field(ge=1, le=MOST_PROFILED_STEPS)]
    ranks: tuple[Annotated[int, Field(ge=0, lt=MOST_RANKS)], ...] | None = None
    at: Moment | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class ProfileAnswer:
    """`profiles/7f3a.json`: the first and the last step that a request led to and where their traces will lie."""

    steps: tuple[Count, Count] | None = None
    traces: tuple[str, ...] = ()
    refused: str = ""


@dataclass(frozen=True, slots=True)
class SkippedDocument:
    """`skipped.json`: steps whose update is left out after a roll-back, with the reason; written by rank 0."""

    steps: Mapping[Annotated[int, Field(ge=0)], str]


@dataclass(frozen=True, slots=True)
class QuarantinedSample:
    """A damaged sample that was left out of `step`."""

    shard: str
    key: str
    reason: str = ""
    step: Count = 0


@dataclass(frozen=True, slots=True)
class QuarantineDocument:
    """`quarantine.json`: every damaged sample that the run left out, over all ranks and attempts; written by rank 0."""

    samples: tuple[QuarantinedSample, ...]


@dataclass(frozen=True, slots=True)
class UnsentDocument:
    """`unsent.json`, in the run's folder and in each checkpoint: rows that MLflow has not taken yet; by rank 0.

    What a row holds is the tracker's own; see `tracking.spool.Row`.
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
# Version 0.1.0 wrote these without a frame: a mapping of steps, and lists.
SKIPPED = DocumentKind(SkippedDocument, (lambda body: {"steps": body},))
QUARANTINE = DocumentKind(QuarantineDocument, (lambda body: {"samples": body},))
UNSENT = DocumentKind(UnsentDocument, (lambda body: {"rows": body},), limit_bytes=1 << 28)
