"""Measures the fused losses in the first minutes on a GPU: the device, the errors of the results, and the speed.

    python3 launch/gpu_first.py --seconds 540 --out docs/benchmarks

The measurements need only torch and triton; the last stage, the tests, also needs pytest.
The script installs nothing, and imports the sources of this checkout. A stage is skipped if too little time is left for
it, and an error in one stage does not prevent the next. Each result is printed and appended to `gpu_first.jsonl` at
once, so that an interrupted run keeps its results. The most important stages come first:

    device      the rates of a copy and of a large matrix product
    checks      the errors of every setting, compared with float64, in parallel processes
    plain       the plain global loss at 65,536 x 768: time, efficiency, extra memory, and its slowest kernels
    products    the matrix products that the backward pass leaves to torch, for several shapes
    tiles       the global loss with each candidate for the size of a tile (the part of the score matrix that a kernel
                computes at once), in three settings: the plain loss, the loss with positives mined by the similarity
                of image and text (`joint`), and the sigmoid loss
    settings    the global loss in every setting, such as mined, sigmoid and soft, relative to the plain loss; and the
                plain loss of small batches
    regions     the local loss for several numbers of patches and sentences
    peers       the losses of other packages, if they are installed
    million     the plain global loss of 1,048,576 rows
    tests       the tests of the fused kernels in parallel, until the time is over

An efficiency is a rate in FLOP/s, divided by the rate of the large matrix product of the first stage.

Without a CUDA device everything runs at toy sizes with the backend `chunked`. This dry run finds errors of the script;
its results do not describe a device.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from multiprocessing import active_children, get_context
from operator import attrgetter
from pathlib import Path
from typing import Any

# The sources of this checkout come first, also if another version of the packages is installed.
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402 - needs the path of our own packages
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss  # noqa: E402
from emocap_kernels.backend import Backend  # noqa: E402
from emocap_kernels.fused import tiling  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.harness.machine import occasion, versions  # noqa: E402
from benchmarks.kernels.batches import PairBatch, Regions, draw_pairs, draw_regions  # noqa: E402
from benchmarks.kernels.device import PACKAGES, clock_of, device_name, peak_bytes  # noqa: E402
from benchmarks.kernels.subject import Size  # noqa: E402
from benchmarks.kernels.tune import CANDIDATES, numbers_of, use_tile  # noqa: E402

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
BACKEND: Backend = "fused" if CUDA else "chunked"
DTYPE = torch.bfloat16
# Relative error of a gradient in bfloat16 that a correct kernel stays below (rounding alone gives about 3e-3).
TOLERANCE = 3e-2
PROCESSES = min(14, os.cpu_count() or 1)  # The number of processes for the checks and the tests.

# The arguments of each setting of the global loss; `ids` is the number of samples that share an id.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "ids": {"ids": 2},
    "joint": {"mining": Mining("joint", 0.25)},
    "threshold": {"mining": Mining("counterpart", 0.25)},
    "ignore": {"mining": Mining("counterpart", 0.25, treatment="ignore")},
    "top_k": {"mining": Mining("counterpart", top_k=4)},
    "mil_nce": {"objective": "mil_nce", "mining": Mining("text", 0.25)},
    "sigmoid": {"objective": "sigmoid"},
    "sigmoid_threshold": {"objective": "sigmoid", "mining": Mining("text", 0.25)},
    "soft": {"objective": "soft", "guide_scale": 20.0},
}
# The current tile comes first. With four warps and two stages, two programs may share a multiprocessor.
TILES = (*CANDIDATES, tiling.TileConfig(128, 128, 64, 4, 2))
# Number of patches and of sentences of an image.
REGIONS = ((49, 4), (196, 4), (576, 2))
PEERS = ("cut_cross_entropy", "inf_cl", "liger", "open_clip", "open_clip_sigmoid")


def evaluate(setting: str, batch: PairBatch, backend: Backend = BACKEND) -> tuple[Tensor, ...]:
    """Returns the loss of the setting `SETTINGS[setting]`, and its gradients with respect to image, text and scale."""
    options = dict(SETTINGS[setting])
    if "ids" in options:
        options["ids"] = torch.arange(len(batch.image), device=batch.device) // options["ids"]
    if options.get("objective") == "sigmoid":
        options["bias"] = batch.bias.detach()
    if options.get("objective") == "soft":
        options |= {"guide_image": batch.image.detach(), "guide_text": batch.text.detach()}
    loss = contrastive_loss(batch.image, batch.text, batch.scale, backend=backend, **options).loss
    return loss, *torch.autograd.grad(loss, (batch.image, batch.text, batch.scale))


def evaluate_regions(batch: Regions, backend: Backend = BACKEND) -> tuple[Tensor, ...]:
    """Returns the local loss, and its gradients with respect to patches, sentences and scale."""
    arguments = (batch.patches, batch.sentences, batch.owner, batch.scale)
    loss = region_contrastive_loss(*arguments, backend=backend).loss
    return loss, *torch.autograd.grad(loss, (batch.patches, batch.sentences, batch.scale))


def forward(batch: PairBatch) -> Tensor:
    with torch.no_grad():
        return contrastive_loss(batch.image, batch.text, batch.scale, backend=BACKEND).loss


def relative_error(found: Sequence[Tensor], true: Sequence[Tensor]) -> float:
    """Returns the largest relative error among the tensors in `found`.

    The error of a tensor is the norm of its difference from the true tensor, divided by the norm of the true tensor.
    """
    pairs = zip(found, true, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-12)).item() for a, b in pairs)


def check(name: str) -> tuple[float, float]:
    """Returns the largest relative error of the loss and its gradients, and the seconds that the check took.

    The results are compared with those of the reference in float64. The number of rows and the width are not multiples
    of tile sizes.

    Args:
        name: A key of `SETTINGS`, for the global loss; or "tile NUMBER", for the plain global loss with the tile size
            `TILES[NUMBER]`; or "regions PATCHES SENTENCES", for the local loss with these numbers of patches and
            sentences of an image.
    """
    start_s = time.monotonic()
    kind, *numbers = name.split()
    if kind == "regions":
        patches, sentences = map(int, numbers)
        local = draw_regions(Size(9, 80, patches, 9 * sentences), DTYPE, DEVICE)
        error = relative_error(evaluate_regions(local), evaluate_regions(local.to(torch.float64), "reference"))
    else:
        setting = "plain" if kind == "tile" else kind
        batch = draw_pairs(Size(1301 if CUDA else 157, 80), DTYPE, DEVICE)
        # The process runs further checks, which must have the usual tiles.
        with use_tile(TILES[int(numbers[0])]) if kind == "tile" else nullcontext():
            found = evaluate(setting, batch)
        error = relative_error(found, evaluate(setting, batch.to(torch.float64), "reference"))
    return error, time.monotonic() - start_s


def median_s(call: Callable[[], object], rounds: int = 5) -> float:
    """Returns the median time of one call in seconds. It is measured `rounds` times, after two calls as a warm-up.

    The first call compiles kernels.
    """
    call()
    call()
    seconds = clock_of(DEVICE)
    return statistics.median(seconds(call, 1) for _ in range(rounds))


@dataclass(slots=True)
class Session:
    """The time that remains for the measurements, and the file of results.

    Attributes:
        seconds: Time for all stages, in seconds.
        path: File of the JSON lines.
        flops_per_s: Rate of a large matrix product in FLOP/s, which the first stage measures; 1 until then.
        start_s: Time at which the session began, by `time.monotonic()`.
        stage: Name of the current stage.
        about: Device, versions, commit, date and command, which every line contains.
    """

    seconds: float
    path: Path
    flops_per_s: float = 1.0
    start_s: float = field(default_factory=time.monotonic)
    stage: str = ""
    about: Mapping[str, Any] = field(
        default_factory=lambda: {"versions": versions(PACKAGES), **asdict(occasion(device_name(DEVICE)))}
    )

    def left_s(self) -> float:
        return self.seconds - (time.monotonic() - self.start_s)

    def record(self, **values: Any) -> None:
        """Prints a result and appends it to the file."""
        at_s = round(time.monotonic() - self.start_s, 1)
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "at_s": at_s, **values, **self.about}) + "\n")
        shown = (
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
        )
        sys.stdout.write(f"{at_s:6.1f} s  {self.stage:<9} {'  '.join(shown)}\n")
        sys.stdout.flush()

    def run(self, stage: str, needs_s: float, act: Callable[["Session"], None]) -> None:
        """Runs a stage, unless less than `needs_s` seconds are left. An error of the stage is recorded, not raised."""
        self.stage = stage
        if self.left_s() < needs_s:
            self.record(skipped=f"{self.left_s():.0f} s are left, {needs_s:.0f} s are needed")
            return
        try:
            act(self)
        except Exception as error:  # noqa: BLE001 - it is recorded, and the stages do not depend on each other
            self.record(failed=first_line(error))
            traceback.print_exc()
        if CUDA:
            torch.cuda.empty_cache()

    def efficiency(self, flops: float, seconds: float) -> float:
        return flops / (seconds * self.flops_per_s)


def first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:200]


def measure_device(session: Session) -> None:
    side = 8192 if CUDA else 128
    left, right = torch.randn(2, side, side, device=DEVICE, dtype=DTYPE)
    session.flops_per_s = 2 * side**3 / median_s(lambda: left @ right, 10)
    data = torch.empty(2**30 if CUDA else 2**24, device=DEVICE, dtype=torch.uint8)
    copied = 2 * data.numel() / median_s(data.clone)
    session.record(matmul_tflop_per_s=session.flops_per_s / 1e12, copy_tb_per_s=copied / 1e12)


def run_checks(session: Session) -> None:
    names = [*SETTINGS, *(f"regions {patches} {sentences}" for patches, sentences in REGIONS)]
    if CUDA:  # Only the fused kernels have tiles.
        names += [f"tile {number}" for number in range(1, len(TILES))]
    # A process that is forked cannot use CUDA if its parent has used it, so the processes are spawned.
    pool = ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn"))
    jobs = {name: pool.submit(check, name) for name in names}
    for name, job in jobs.items():
        try:
            error, seconds = job.result(timeout=max(5.0, min(150.0, session.left_s())))
            session.record(check=name, relative_error=error, correct=error < TOLERANCE, seconds=seconds)
        except Exception as failure:  # noqa: BLE001 - the other settings must run
            session.record(check=name, failed=first_line(failure))
    pool.shutdown(wait=False, cancel_futures=True)
    for process in active_children():  # A process that hangs must not delay the later stages.
        process.kill()


def measure_plain(session: Session) -> None:
    rows, width = (65_536, 768) if CUDA else (512, 64)
    batch = draw_pairs(Size(rows, width), DTYPE, DEVICE)
    # One product of all images and texts. Forward and backward need four (docs/method.md, section 5).
    product = 2.0 * rows * rows * width
    both_s, forward_s = median_s(lambda: evaluate("plain", batch)), median_s(lambda: forward(batch))
    session.record(
        rows=rows,
        width=width,
        ms=1e3 * both_s,
        efficiency=session.efficiency(4 * product, both_s),
        forward_ms=1e3 * forward_s,
        forward_efficiency=session.efficiency(product, forward_s),
        extra_bytes=peak_bytes(lambda: evaluate("plain", batch), DEVICE),
    )
    if CUDA:
        profile_plain(session, batch)


def profile_plain(session: Session, batch: PairBatch) -> None:
    """Records the ten kernels that take the most time on the device."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        evaluate("plain", batch)
        torch.cuda.synchronize()
    averages: Any = seen.key_averages()
    events: list[Any] = sorted(averages, key=attrgetter("self_device_time_total"), reverse=True)
    for event in events[:10]:
        session.record(kernel=event.key[:70], ms=event.self_device_time_total / 1e3, calls=event.count)
    total_ms = sum(event.self_device_time_total for event in events) / 1e3
    session.record(kernels=sum(event.count for event in events), device_ms=total_ms)


def measure_products(session: Session) -> None:
    """Measures the two matrix products that the backward pass of the fused loss leaves to torch.

    The kernels compute the gradient of the score matrix in parts (chunks). One product multiplies a chunk with the text
    vectors, and the other one multiplies the transposed chunk with the image vectors. Both are measured for several
    shapes of a chunk. The records contain the efficiency: the rate relative to that of a large square matrix product.
    """
    chunks = ((8192, 8192), (5632, 11_264), (8448, 8448), (4096, 16_384), (16_384, 4096)) if CUDA else ((256, 256),)
    for width in (768, 512):
        for rows, columns in chunks:
            scores, images, texts = (
                torch.randn(shape, device=DEVICE, dtype=DTYPE)
                for shape in ((rows, columns), (rows, width), (columns, width))
            )
            by_image = median_s(lambda scores=scores, texts=texts: scores @ texts, 10)
            by_text = median_s(lambda scores=scores, images=images: scores.T @ images, 10)
            flops = 2.0 * rows * columns * width
            session.record(
                width=width,
                chunk=f"{rows}x{columns}",
                image_efficiency=session.efficiency(flops, by_image),
                text_efficiency=session.efficiency(flops, by_text),
            )


def measure_tiles(session: Session) -> None:
    batch = draw_pairs(Size(32_768, 768) if CUDA else Size(256, 64), DTYPE, DEVICE)
    for setting in ("plain", "joint", "sigmoid"):
        for tile in TILES if CUDA else TILES[:1]:
            if session.left_s() < 60:
                session.record(skipped=f"the tiles from {setting}, {numbers_of(tile)}, to keep time for later stages")
                return
            try:
                with use_tile(tile):
                    seconds = median_s(lambda setting=setting: evaluate(setting, batch), 3)
                session.record(setting=setting, tile=numbers_of(tile), ms=1e3 * seconds)
            except Exception as error:  # noqa: BLE001 - a tile that does not compile is a result
                session.record(setting=setting, tile=numbers_of(tile), failed=first_line(error))


def measure_settings(session: Session) -> None:
    width = 768 if CUDA else 64
    batch = draw_pairs(Size(32_768 if CUDA else 256, width), DTYPE, DEVICE)
    plain_s = median_s(lambda: evaluate("plain", batch), 3)
    for setting in SETTINGS:
        seconds = median_s(lambda setting=setting: evaluate(setting, batch), 3)
        session.record(setting=setting, ms=1e3 * seconds, ratio_to_plain=seconds / plain_s)
    for rows in (1024, 4096, 8192, 16_384) if CUDA else (64,):
        small = draw_pairs(Size(rows, width), DTYPE, DEVICE)
        seconds = median_s(lambda small=small: evaluate("plain", small), 10)
        session.record(rows=rows, ms=1e3 * seconds, efficiency=session.efficiency(8.0 * rows * rows * width, seconds))


def measure_regions(session: Session) -> None:
    images, width = (1024, 512) if CUDA else (8, 32)
    for patches, each in REGIONS:
        sentences = images * each
        batch = draw_regions(Size(images, width, patches, sentences), DTYPE, DEVICE)
        seconds = median_s(lambda batch=batch: evaluate_regions(batch), 3)
        flops = 8.0 * images * patches * sentences * width
        session.record(
            images=images,
            patches=patches,
            sentences=sentences,
            ms=1e3 * seconds,
            efficiency=session.efficiency(flops, seconds),
        )


def measure_peers(session: Session) -> None:
    from benchmarks.kernels import peers

    batch = draw_pairs(Size(65_536, 768) if CUDA else Size(256, 256), DTYPE, DEVICE)
    leaves = (batch.image, batch.text, batch.scale)
    for name in PEERS:
        loss: Callable[[PairBatch], Tensor] = getattr(peers, name)
        try:
            seconds = median_s(lambda loss=loss: torch.autograd.grad(loss(batch), leaves), 2)
            session.record(peer=name, rows=len(batch.image), ms=1e3 * seconds)
        except Exception as error:  # noqa: BLE001 - a peer may raise anything
            session.record(peer=name, failed=first_line(error))


def measure_million(session: Session) -> None:
    rows, width = (2**20, 512) if CUDA else (1024, 32)
    batch = draw_pairs(Size(rows, width), DTYPE, DEVICE)
    found: list[float] = []

    def call() -> None:
        found.append(evaluate("plain", batch)[0].item())

    start_s = time.perf_counter()
    extra = peak_bytes(call, DEVICE)
    seconds = time.perf_counter() - start_s
    session.record(
        rows=rows,
        width=width,
        seconds=seconds,
        efficiency=session.efficiency(8.0 * rows * rows * width, seconds),
        loss=found[0],
        extra_bytes=extra,
    )


def run_tests(session: Session) -> None:
    command = [sys.executable, "-m", "pytest", "tests/emocap_kernels/fused", "-q", "-p", "no:cacheprovider"]
    # The project's settings of pytest and tests/conftest.py need packages that the kernels do not need.
    options = ["-c", os.devnull, "--rootdir", str(ROOT), "--confcutdir", "tests/emocap_kernels", "--tb=line"]
    if PROCESSES > 1 and find_spec("xdist"):
        options += ["-n", str(PROCESSES)]
    path = os.pathsep.join([*sys.path[:2], str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    output = session.path.with_name("gpu_first_tests.txt")
    with output.open("w") as file:
        try:
            subprocess.run(
                [*command, *options],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=max(10.0, session.left_s() - 5),
                check=False,
            )
        except subprocess.TimeoutExpired:
            session.record(skipped="the tests did not end in the time that was left")
    lines = output.read_text(errors="replace").strip().splitlines()
    session.record(tests=lines[-1][:200] if lines else "no output", output=output.name)


# Name, fewest seconds and function of each stage; the most important stages come first.
STAGES: tuple[tuple[str, float, Callable[[Session], None]], ...] = (
    ("device", 5, measure_device),
    ("checks", 30, run_checks),
    ("plain", 20, measure_plain),
    ("products", 15, measure_products),
    ("tiles", 60, measure_tiles),
    ("settings", 30, measure_settings),
    ("regions", 30, measure_regions),
    ("peers", 40, measure_peers),
    ("million", 30, measure_million),
    ("tests", 60, run_tests),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=540.0, help="Time for all stages.")
    parser.add_argument("--out", type=Path, default=Path(), help="Folder of gpu_first.jsonl.")
    parser.add_argument("--commit", help="Revision of the sources, for a machine without git.")
    parser.add_argument("--skip", nargs="*", default=[], choices=[name for name, *_ in STAGES], help="Stages to skip.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    session = Session(options.seconds, options.out / "gpu_first.jsonl")
    if options.commit:
        session.about = {**session.about, "commit": options.commit}
    for name, needs_s, act in STAGES:
        if name not in options.skip:
            session.run(name, needs_s, act)


if __name__ == "__main__":
    main()
