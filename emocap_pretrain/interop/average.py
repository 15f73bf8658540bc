"""Reads the moving average (EMA) of a run's weights from the engine files of a checkpoint.

The engine file of a rank holds the average of the rank's slices of the trained parameters. This module puts the slices
of all ranks together, for any number of ranks and any stage of ZeRO. The files are not trusted: a slice that would
exceed its parameter is refused.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emocap_pretrain.checkpoint.layout import AVERAGE, ENGINE, HEADER
from emocap_pretrain.errors import CheckpointError


def with_average(weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Returns the weights of a checkpoint, with the moving average in place of each trained parameter.

    Buffers and frozen parameters have no average and keep their values.

    Args:
        weights: All weights of the checkpoint, by name.
        folder: The local folder of the checkpoint, with all of its engine files.

    Raises:
        CheckpointError: If the files cannot be read, do not fit the weights, or lack a part of the average.
    """
    found: dict[str, Tensor] = {}
    missing: dict[str, Tensor] = {}  # True for each element of the flattened parameter that no slice has given.
    try:
        for name, offset, values in _slices(folder):
            if name not in found:
                found[name] = weights[name].clone()
                missing[name] = torch.ones(weights[name].numel(), dtype=torch.bool)
            found[name].view(-1).narrow(0, offset, values.numel()).copy_(values)
            missing[name].narrow(0, offset, values.numel()).fill_(False)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the moving average in the checkpoint's engine files cannot be read: {error}") from error
    incomplete = [name for name, elements in missing.items() if elements.any()]
    if incomplete or not found:
        name = incomplete[0] if incomplete else "it"
        raise CheckpointError(
            f"the checkpoint's engine files do not hold the whole moving average: {name} is incomplete."
        )
    return {**weights, **found}


def _slices(folder: Path) -> Iterator[tuple[str, int, Tensor]]:
    """Yields the name of a parameter, the start of a slice in the flattened parameter, and the average of the slice."""
    for path in sorted((folder / ENGINE).iterdir()):
        with safe_open(path, "pt") as file:
            offsets = json.loads(file.metadata()[HEADER])["offsets"]
            for key in file.keys():  # noqa: SIM118
                state, _, name = key.partition("/")
                if state == AVERAGE:
                    yield name, offsets[name], file.get_tensor(key)
