"""Measures the memory and the time of the task `retrieval` for many faces and captions with random vectors.

Each size is measured in a process of its own, because the peak of the memory of a process never falls.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness.machine import REPOSITORY, Occasion, versions
from benchmarks.harness.record import Measurement, measured
from benchmarks.harness.tables import table
from emocap_pretrain.errors import ConfigError

WHAT = "memory of retrieval beyond its vectors and texts"
MILLION = 1_000_000


class RetrievalSize(NamedTuple):
    """The number of faces and the number of distinct captions; each face has one caption."""

    faces: int
    captions: int

    @classmethod
    def parsed(cls, text: str) -> "RetrievalSize":
        """Reads a size such as "1000x200" from the command line."""
        found = re.fullmatch(r"(\d+)x(\d+)", text)
        if not found or not 2 <= int(found[2]) <= int(found[1]):
            raise argparse.ArgumentTypeError(f"{text} must be FACESxCAPTIONS, with at most as many captions as faces")
        return cls(int(found[1]), int(found[2]))


def measure(sizes: Sequence[RetrievalSize], width: int, occasion: Occasion) -> Iterator[Measurement]:
    """Yields one record for each size: how far the peak of the memory lies above the memory before the task began.

    Args:
        sizes: The sizes.
        width: Numbers of a vector.
        occasion: The fields that all records share.

    Raises:
        ConfigError: If a process fails, for example because there is not enough memory.
    """
    for size in sizes:
        words = [sys.executable, "-m", __name__, str(size.faces), str(size.captions), str(width)]
        done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=REPOSITORY)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ConfigError(f"retrieval of {size.faces} x {size.captions} ended with code {done.returncode}: {last}")
        found = json.loads(done.stdout)
        yield measured(
            occasion,
            [found.pop("growth_mib")],
            what=WHAT,
            contender="retrieval",
            setting={"faces": size.faces, "captions": size.captions, "width": width},
            unit="MiB",
            more=found,
            versions=versions(("torch",)),
        )


def _measured_here(size: RetrievalSize, width: int) -> dict[str, float]:
    """Runs the task in this process.

    Returns:
        The resident memory with all vectors and texts in it, how far the peak lies above it (in MiB), and the seconds
        of the processor.
    """
    import torch

    from emocap_pretrain.config.schema import EvaluationConfig
    from emocap_pretrain.evaluation.features import Features, PartFeatures
    from emocap_pretrain.evaluation.retrieval import Retrieval

    torch.manual_seed(0)
    images, texts = torch.randn(size.faces, width), torch.randn(size.captions, width)
    # Each caption is that of as many faces as the others.
    of_face = torch.arange(size.faces) % size.captions
    sentences = [f"caption {number}" for number in range(size.captions)]
    part = PartFeatures(
        tuple(sentences[each] for each in of_face.tolist()),
        texts[of_face],
        torch.arange(size.faces),
        torch.arange(size.faces),
    )
    keys = tuple(f"face {number}" for number in range(size.faces))
    features = Features(keys=keys, images=images, pooled=images, labels=({},) * size.faces, parts={"global": part})
    nothing: Any = None  # The task reads no model.
    before_mib, begin_s = _memory_mib("VmRSS"), time.process_time()
    Retrieval(EvaluationConfig(url="faces")).result(nothing, {"test": features})
    return {
        "growth_mib": round(_memory_mib("VmHWM") - before_mib, 1),
        "before_mib": round(before_mib, 1),
        "cpu_s": round(time.process_time() - begin_s, 1),
    }


def _memory_mib(name: str) -> float:
    """Returns a line of /proc/self/status (Linux) in MiB: VmRSS is the memory that lies in RAM, and VmHWM its peak.

    The peak of getrusage is not taken, because on Linux it contains that of the process that started this one.
    """
    return int(re.findall(rf"^{name}:\s*(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)[0]) / 1024


def markdown(lines: Sequence[Measurement]) -> str:
    """Returns a table of the sizes, and what follows from them for a million faces and captions.

    The memory is extrapolated from the record with most faces and captions, and the time from the one with most pairs.
    """
    rows = [
        [
            f"{line.setting['faces']:,} x {line.setting['captions']:,}",
            str(line.setting["width"]),
            f"{line.median:,.0f} MiB",
            f"{_bytes_each(line):,.0f}",
            f"{(line.more or {})['cpu_s']:,.0f} s",
            f"{_nanoseconds(line):.1f}",
        ]
        for line in lines
    ]
    columns = ["faces x captions", "width", "memory", "bytes for each face and caption", "CPU time", "ns for each pair"]
    largest = max(lines, key=lambda line: line.setting["faces"] + line.setting["captions"])
    longest = max(lines, key=lambda line: line.setting["faces"] * line.setting["captions"])
    mib, hours = _bytes_each(largest) * 2 * MILLION / (1 << 20), _nanoseconds(longest) * MILLION**2 / 3.6e12
    return table(columns, rows) + (
        f"\nExtrapolated, not measured: {MILLION:,} x {MILLION:,} with vectors of {largest.setting['width']} numbers "
        f"would need {mib:,.0f} MiB beyond the vectors and texts, and {hours:.1f} hours of one core.\n"
    )


def _bytes_each(line: Measurement) -> float:
    return line.median * (1 << 20) / (line.setting["faces"] + line.setting["captions"])


def _nanoseconds(line: Measurement) -> float:
    return 1e9 * (line.more or {})["cpu_s"] / (line.setting["faces"] * line.setting["captions"])


if __name__ == "__main__":
    _faces, _captions, _width = map(int, sys.argv[1:])
    print(json.dumps(_measured_here(RetrievalSize(_faces, _captions), _width)))  # noqa: T201 - the result for the parent
