"""Checks the GPUs of this host, their driver against torch's CUDA, and NCCL."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pynvml
import torch
from torch.cuda import nccl

from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail, ok, skipped, warn

BUSY_SHARE = 0.1  # A GPU of which other programs use more than this share of the memory is reported.
_NCCL_CURE = "start with NCCL_DEBUG=INFO and read its last lines; check /dev/shm and `nvidia-smi topo -m`"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """Holds what the driver and torch report about the GPUs of this host.

    Attributes:
        driver: Version of the NVIDIA driver; empty if this host has none.
        driver_cuda: Newest version of CUDA that the driver supports, as (major, minor).
        present: Number of GPUs that the driver reports, including those that are hidden from this process.
        torch_cuda: Version of CUDA for which torch was built; None for a build without CUDA.
        names: Names of the GPUs that torch can use.
        capabilities: Their compute capabilities, in the same order.
        architectures: The architectures for which torch was built, such as "sm_90".
        free_shares: The share of the memory of each GPU that is free, in [0, 1].
        fault: Why torch cannot use the GPUs; empty if it can.
    """

    driver: str = ""
    driver_cuda: tuple[int, int] = (0, 0)
    present: int = 0
    torch_cuda: tuple[int, int] | None = None
    names: tuple[str, ...] = ()
    capabilities: tuple[tuple[int, int], ...] = ()
    architectures: tuple[str, ...] = ()
    free_shares: tuple[float, ...] = ()
    fault: str = ""


def check_gpus(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Checks that torch can use every GPU of this host."""
    yield judged(gpu_facts(), device=inputs.cluster.device)


def nccl_sums(count: int) -> Sequence[float]:
    """Gives the GPU with index `i` a tensor of the value `i + 1`, sums them with NCCL, and returns the sum on each GPU.

    Raises:
        RuntimeError: If NCCL or CUDA fails. torch raises it for all of their errors.
    """
    parts = [torch.full((1 << 20,), float(each + 1), device=f"cuda:{each}") for each in range(count)]
    nccl.all_reduce(parts)
    return [float(each.mean().item()) for each in parts]


def check_nccl(inputs: DoctorInputs, *, sums_of: Callable[[int], Sequence[float]] = nccl_sums) -> Iterator[CheckResult]:
    """Sums a tensor over all GPUs of this host with NCCL, and compares the result.

    Args:
        inputs: Says whether the run uses GPUs.
        sums_of: Returns the sum on each GPU for a number of GPUs, as `nccl_sums` does.
    """
    if inputs.cluster.device == "cpu":
        yield skipped("cluster.device=cpu uses no GPU")
        return
    if not torch.cuda.is_available():
        yield skipped("torch can use no GPU here; ranks on CPUs use gloo")
        return
    if not torch.distributed.is_nccl_available():
        yield fail("this build of torch has no NCCL", "install torch from https://pytorch.org for CUDA on Linux")
        return
    version = ".".join(map(str, nccl.version()))
    count = torch.cuda.device_count()
    try:
        sums = sums_of(count)
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        yield fail(f"NCCL {version} fails: {first}", _NCCL_CURE)
        return
    wanted = count * (count + 1) / 2
    if any(each != wanted for each in sums):
        yield fail(f"NCCL {version} returns wrong sums: {sums}, where {wanted} is right", _NCCL_CURE)
    else:
        yield ok(f"NCCL {version}, a sum over {count} GPU{'s' if count > 1 else ''} is right")


def judged(facts: GpuFacts, *, device: str) -> CheckResult:
    """Returns what the facts mean for a run with this value of `cluster.device`."""
    if device == "cpu":
        return skipped("cluster.device=cpu uses no GPU")
    if not facts.present:
        if device == "cuda":
            why = "the driver reports no GPU" if facts.driver else "this host has no NVIDIA driver"
            return fail(f"cluster.device=cuda, but {why}", "use a host with GPUs, or set cluster.device to auto or cpu")
        return skipped("this host has no NVIDIA GPU; ranks use CPUs")
    return _of_build(facts) or _of_devices(facts)


def _of_build(facts: GpuFacts) -> CheckResult | None:
    """Returns a result if torch's build and the driver do not fit each other, else None."""
    driver = f"driver {facts.driver} (CUDA {_dotted(facts.driver_cuda)})"
    if facts.torch_cuda is None:
        return fail(
            f"{driver} reports {facts.present} GPUs, but torch was built for CPUs",
            f"install the CUDA build of the same version: pip install --force-reinstall torch=={_release()}",
        )
    if facts.torch_cuda[0] > facts.driver_cuda[0]:
        return fail(
            f"{driver} is too old for torch, which was built for CUDA {_dotted(facts.torch_cuda)}",
            f"install a driver for CUDA {facts.torch_cuda[0]}, or torch for CUDA {facts.driver_cuda[0]}",
        )
    if facts.fault or not facts.names:
        return fail(
            f"{driver} reports {facts.present} GPUs, but torch can use none: {facts.fault or 'they are hidden'}",
            "check CUDA_VISIBLE_DEVICES; a container needs `docker run --gpus all`",
        )
    return None


def _of_devices(facts: GpuFacts) -> CheckResult:
    torch_cuda = facts.torch_cuda or (0, 0)
    for name, capability in zip(facts.names, facts.capabilities, strict=True):
        if not supports(facts.architectures, capability):
            built = ", ".join(facts.architectures)
            return fail(
                f"torch has no kernels for {name} (sm_{capability[0]}{capability[1]}): it was built for {built}",
                "install a build of torch that names this GPU's architecture",
            )
    busy = [number for number, share in enumerate(facts.free_shares) if share < 1 - BUSY_SHARE]
    if busy:
        used = ", ".join(f"GPU {number} ({1 - facts.free_shares[number]:.0%} used)" for number in busy)
        return warn(f"other programs use memory of {used}", "look at `nvidia-smi`, and end what is not needed")
    kinds = " and ".join(f"{facts.names.count(name)} x {name}" for name in dict.fromkeys(facts.names))
    text = f"{kinds}, driver {facts.driver}, torch for CUDA {_dotted(torch_cuda)}"
    if torch_cuda > facts.driver_cuda:
        return warn(
            f"{text}; the driver is of CUDA {_dotted(facts.driver_cuda)}",
            "this usually works; if a kernel fails to load, update the driver",
        )
    if len(facts.names) < facts.present:
        return warn(f"{text}; {facts.present - len(facts.names)} GPUs are hidden", "check CUDA_VISIBLE_DEVICES")
    return ok(text)


def supports(architectures: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Returns whether a build for these architectures runs on a GPU of this compute capability.

    Machine code (`sm_80`) runs on GPUs of the same major version and an equal or higher minor version; an `a` or `f`
    at its end restricts it to its own capability. The driver compiles PTX (`compute_80`) for every later GPU.

    >>> supports(("sm_80", "sm_90"), (8, 6)), supports(("sm_80",), (9, 0)), supports(("compute_80",), (9, 0))
    (True, False, True)
    """
    for each in architectures:
        parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", each)
        if parts is None:
            continue
        built = (int(parts[2]), int(parts[3]))
        if built == capability or (parts[1] == "compute" and not parts[4] and built <= capability):
            return True
        if not parts[4] and built[0] == capability[0] and built <= capability:
            return True
    return False


def gpu_facts() -> GpuFacts:
    """Asks the driver and torch about the GPUs of this host."""
    try:
        pynvml.nvmlInit()
        driver, number = str(pynvml.nvmlSystemGetDriverVersion()), int(pynvml.nvmlSystemGetCudaDriverVersion())
        driver_cuda, present = (number // 1000, number % 1000 // 10), int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:  # Without a driver there is no library of NVML.
        driver, driver_cuda, present = "", (0, 0), 0
    built = torch.version.cuda
    names = capabilities = free = ()
    fault = ""
    try:
        visible = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        names = tuple(torch.cuda.get_device_name(each) for each in visible)
        capabilities = tuple(torch.cuda.get_device_capability(each) for each in visible)
        memory = [torch.cuda.mem_get_info(each) for each in visible]
        free = tuple(left / total for left, total in memory)
        if present and built and not visible:
            torch.cuda.init()  # The error says why torch has no device.
    except RuntimeError as error:
        fault = str(error).partition("\n")[0]
    return GpuFacts(
        driver=driver,
        driver_cuda=driver_cuda,
        present=present,
        torch_cuda=None if built is None else _version(built),
        names=names,
        capabilities=capabilities,
        architectures=tuple(torch.cuda.get_arch_list()),
        free_shares=free,
        fault=fault,
    )


def _release() -> str:
    return torch.__version__.partition("+")[0]


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor.partition(".")[0] or 0)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
