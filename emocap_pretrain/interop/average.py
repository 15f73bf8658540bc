"""Reads averages of a run's weights from the engine files of a checkpoint.

This is either the moving average (EMA), or the average that schedule-free AdamW means for use. The engine file of a
rank holds states of the rank's slices of the trained parameters. This module puts the slices of all ranks together, for
any number of ranks and any stage of ZeRO. The files are not trusted: a slice that would exceed its parameter is
refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emocap_pretrain.checkpoint.layout import AVERAGE, ENGINE, HEADER
from emocap_pretrain.errors import CheckpointError

BASE = "z"  # The state of schedule-free AdamW in the engine files: the weights that plain steps would give.


def with_average(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint, with the moving average in place of each trained parameter.

    Buffers and frozen parameters have no average and keep their values.

    Args:
        weights: All weights of the checkpoint, by name.
        folder: The local folder of the checkpoint, with all of its engine files.

    Raises:
        CheckpointError: If the files cannot be read, do not fit the weights, or lack a part of the average.
    """
    return {**weights, **_whole(weights, folder, AVERAGE, "moving average")}


def with_schedule_free(weights: dict[str, Tensor], folder: Path, *, beta: float) -> dict[str, Tensor]:
    """Returns the weights that schedule-free AdamW means for use, from those of a checkpoint.

    Training computes gradients at y = (1 - beta) * z + beta * x, where x is the average of all z so far. The checkpoint
    has y as its weights and z as a state. So x = y + (1 - 1 / beta) * (z - y), as in the `eval` of the library.

    Args:
        weights: All weights of the checkpoint, by name.
        folder: The local folder of the checkpoint, with all of its engine files.
        beta: The first value of `optimizer.betas` of the run, above 0.

    Raises:
        CheckpointError: If the files cannot be read, do not fit the weights, or lack a part of the state.
    """
    bases = _whole(weights, folder, BASE, "average of schedule-free AdamW")
    return {**weights, **{name: weights[name].lerp(base, 1 - 1 / beta) for name, base in bases.items()}}


def _whole(weights: dict[str, Tensor], folder: Path, state: str, title: str) -> dict[str, Tensor]:
    """Returns a state with one number for each element, for all parameters that have it.

    `title` names the state in errors, which are those of `with_average`.
    """
    found: dict[str, Tensor] = {}
    missing: dict[str, Tensor] = {}  # True for each element of the flattened parameter that no slice has given.
    try:
        for name, offset, values in _slices(folder, state):
            if name not in found:
                found[name] = weights[name].clone()
                missing[name] = torch.ones(weights[name].numel(), dtype=torch.bool)
            found[name].view(-1).narrow(0, offset, values.numel()).copy_(values)
            missing[name].narrow(0, offset, values.numel()).fill_(False)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the {title} in the checkpoint's engine files cannot be read: {error}") from error
    incomplete = [name for name, elements in missing.items() if elements.any()]
    if incomplete or not found:
        name = incomplete[0] if incomplete else "it"
        raise CheckpointError(f"the checkpoint's engine files do not hold the whole {title}: {name} is incomplete.")
    return found


def _slices(folder: Path, state: str) -> Iterator[tuple[str, int, Tensor]]:
    """Yields the name of a parameter, the start of a slice in the flattened parameter, and the state of the slice."""
    for path in sorted((folder / ENGINE).iterdir()):
        with safe_open(path, "pt") as file:
            offsets = json.loads(file.metadata()[HEADER])["offsets"]
            for key in file.keys():  # noqa: SIM118
                found, _, name = key.partition("/")
                if found == state:
                    yield name, offsets[name], file.get_tensor(key)
