"""Reads the records of a loss: the setting in which it was measured, and its name in figures and tables."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.record import Measurement

from .size import Size
from .variants import PLAIN, Pass, Variant


def setting_of(
    variant: Variant, pass_: Pass | None, width: int, dtype: str, size: Size | None = None
) -> dict[str, Any]:
    """Returns the setting of a contender; without pass and size if it was skipped at every size.

    `patches` are those of an image and `sentences` those of the batch; both are None if the loss has whole images only.
    """
    return {
        "variant": variant.name,
        "pass": pass_,
        "rows": size and size.rows,
        "patches": size and size.patches,
        "sentences": size and size.sentences,
        "width": width,
        "dtype": dtype,
    }


def size_of(line: Measurement) -> Size | None:
    """Returns the size of a measurement, or None if the contender was skipped at every size."""
    at = line.setting
    return None if at["rows"] is None else Size(at["rows"], at["width"], at["patches"], at["sentences"])


def place_of(line: Measurement) -> tuple[str, str, str, int]:
    """Returns what a figure or a table is about: the loss, the device, the type and the width."""
    return line.what, line.device, line.setting["dtype"], line.setting["width"]


def label_of(line: Measurement) -> str:
    """Returns the name of a curve, with the variant if that is not the plain loss."""
    variant = line.setting["variant"]
    name = line.contender if variant == PLAIN.name else f"{line.contender} {variant}"
    return f"{name} (wrong)" if is_wrong(line) else name


def is_wrong(line: Measurement) -> bool:
    """Returns whether the contender disagrees with float64 at a small size."""
    agreement = more_of(line, "agreement")
    return agreement is not None and not agreement["right"]


def more_of(line: Measurement, name: str) -> Any:
    """Returns one of these, or None where it does not apply or the contender was skipped.

    - objective, mining, function: what is computed; `function` describes a function other than the plain loss.
    - peak_bytes: largest memory of a call, above the inputs, results included.
    - floor_flops: the fewest operations that this loss needs.
    - eff: `floor_flops` / (median seconds x `matmul_flops_per_s`).
    - matmul_flops_per_s: the rate of a square product in the same type, timed in the same rounds.
    - agreement: the comparison with float64 at a small size; None if we have no such loss.
    - sampled: the comparison with float64 at this size, in sampled rows.
    """
    return (line.more or {}).get(name)
