"""Checks the limits of this host: shared memory, open files and locked memory."""

import os
import resource
from collections.abc import Iterator

from emocap_shards.inspecting.wording import counted, size

from emocap_pretrain.data.loader import SHM_ADVICE
from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail, ok, skipped, warn

LEAST_FILES, GOOD_FILES = 1024, 8192
LITTLE_SHARED = 1 << 30  # Without a config, less shared memory than this is worth a warning: a container has 64 MB.
_MORE_FILES = "type `ulimit -n 65536` before the start; for good: /etc/security/limits.conf, or LimitNOFILE of systemd"
_MORE_LOCKED = (
    "set `memlock` to unlimited in /etc/security/limits.conf (docker run --ulimit memlock=-1; SLURM: "
    "PropagateResourceLimits)"
)


def check_shared_memory(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Compares the free shared memory with what the loader processes and NCCL need."""
    try:
        found = os.statvfs(inputs.shared_memory)
    except OSError as error:
        yield fail(f"{inputs.shared_memory} cannot be used: {error.strerror}", "mount a tmpfs there")
        return
    free = found.f_bavail * found.f_frsize
    has = f"{inputs.shared_memory} has {size(free)} free"
    data, batch_bytes = inputs.data, inputs.batch_bytes
    if data is None or batch_bytes is None:
        yield warn(has, SHM_ADVICE) if free < LITTLE_SHARED else ok(has)
        return
    if not data.workers:
        yield ok(f"{has}; data.workers=0 needs none")
        return
    # The present batch and the prefetched ones of all ranks of this host, if the run uses this host alone.
    wanted, least = (data.workers * data.prefetch + 1) * batch_bytes, 2 * batch_bytes
    if free < least:
        yield fail(f"{has}, and the smallest loader needs {size(least)}", SHM_ADVICE)
    elif free < wanted:
        yield warn(f"{has}, and the loader needs {size(wanted)}: it will prefetch less", SHM_ADVICE)
    else:
        yield ok(f"{has}; the loader needs {size(wanted)}")


def check_open_files(inputs: DoctorInputs) -> Iterator[CheckResult]:  # noqa: ARG001 - the form of a check
    """Checks how many files a process may open. Loader processes and connections to stores need many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        yield ok("no limit")
        return
    text = f"a process may open {counted(soft, 'file')} (hard limit {_limit(hard)})"
    if soft < LEAST_FILES:
        yield fail(text, _MORE_FILES)
    elif soft < GOOD_FILES:
        yield warn(text, _MORE_FILES)
    else:
        yield ok(text)


def check_locked_memory(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Checks that NCCL may lock memory for the InfiniBand adapters of this host, if it has any."""
    try:
        adapters = sorted(each.name for each in inputs.infiniband.iterdir())
    except OSError:
        adapters = []
    if not adapters:
        yield skipped("this host has no InfiniBand adapter")
        return
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY:
        yield ok(f"no limit, for {', '.join(adapters)}")
    else:
        yield fail(f"a process may lock {_limit(soft)} bytes; NCCL locks more for {', '.join(adapters)}", _MORE_LOCKED)


def _limit(value: int) -> str:
    return "none" if value == resource.RLIM_INFINITY else f"{value:,}"
