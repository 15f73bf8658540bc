"""Defines what a check of `emocap doctor` takes and returns."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.schema import ClusterConfig, TrackingConfig

Status = Literal["ok", "warn", "fail", "skipped"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """Holds what one check has found.

    Attributes:
        status: "ok"; "warn" if a run can start but will be slow or may fail; "fail" if a run will fail; "skipped" if
            the check does not apply here.
        text: What was found, or why the check was skipped.
        cure: What to do; empty unless the status is "warn" or "fail".
    """

    status: Status
    text: str
    cure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorInputs:
    """Holds what the checks examine. Without a config, the checks examine the host alone.

    Attributes:
        cluster: The settings of the processes; the defaults without a config.
        url: Folder or URL of the run; None without a config.
        datasets: The URL of each dataset, by the key of its setting, such as "data.url".
        data: The settings of the data; None without a config.
        tracking: Where MLflow is; None without a config.
        checkpoint_bytes: Size of one checkpoint of all ranks together; None if it is unknown.
        keep_last: Number of checkpoints that the run keeps.
        batch_bytes: Approximate size of a global batch in shared memory; None if it is unknown.
        probe_bytes: Largest number of bytes that are read from each dataset to measure its speed.
        lock: A list of versions, such as requirements.lock or the output of `pip freeze`; None if there is none.
        shared_memory: The folder of the host's shared memory.
        infiniband: The folder in which the kernel lists InfiniBand adapters.
    """

    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    url: str | None = None
    datasets: dict[str, str] = field(default_factory=dict[str, str])
    data: DataConfig | None = None
    tracking: TrackingConfig | None = None
    checkpoint_bytes: int | None = None
    keep_last: int = 1
    batch_bytes: int | None = None
    probe_bytes: int = 32 << 20
    lock: Path | None = None
    shared_memory: Path = Path("/dev/shm")  # noqa: S108 - a mount of the kernel; nothing is written there
    infiniband: Path = Path("/sys/class/infiniband")


def ok(text: str) -> CheckResult:
    return CheckResult("ok", text)


def warn(text: str, cure: str) -> CheckResult:
    return CheckResult("warn", text, cure)


def fail(text: str, cure: str) -> CheckResult:
    return CheckResult("fail", text, cure)


def skipped(reason: str) -> CheckResult:
    return CheckResult("skipped", reason)
