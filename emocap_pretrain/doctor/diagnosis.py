"""Lists the checks of `emocap doctor` and runs them."""

from collections.abc import Callable, Iterable, Iterator, Sequence

from emocap_pretrain.doctor import gpus, host, services, storage, versions
from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail

Check = Callable[[DoctorInputs], Iterable[CheckResult]]

# The order is that of the output: first this host, then what the run reaches over the network.
CHECKS: Sequence[tuple[str, Check]] = (
    ("python", versions.check_python),
    ("versions", versions.check_versions),
    ("gpu", gpus.check_gpus),
    ("nccl", gpus.check_nccl),
    ("disk", storage.check_disk),
    ("shared memory", host.check_shared_memory),
    ("open files", host.check_open_files),
    ("locked memory", host.check_locked_memory),
    ("data", storage.check_datasets),
    ("run folder", storage.check_run_folder),
    ("ray", services.check_ray),
    ("clock", services.check_clock),
    ("mlflow", services.check_mlflow),
)


def diagnose(inputs: DoctorInputs) -> Iterator[tuple[str, CheckResult]]:
    """Yields the name and the results of each check, in the order of `CHECKS`.

    A result is yielded as soon as it is known, because a service that does not answer takes up to 20 s. An unexpected
    error of a check is a result with the status "fail", so that the other checks still examine a broken host.
    """
    for name, check in CHECKS:
        try:
            for result in check(inputs):
                yield name, result
        except Exception as error:  # noqa: BLE001 - libraries and drivers of a broken host raise any error
            first = str(error).partition("\n")[0]
            yield name, fail(f"the check ended with {type(error).__name__}: {first}", "correct this, and check again")
