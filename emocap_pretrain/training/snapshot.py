"""Copies the training state to host memory at the end of a step, writes the copy to files, and reads such files.

Training pauses only for the copy. The files are safetensors, so reading them runs no code. Rank 0 writes the weights of
the whole model; every rank writes its slices of the optimizer's state with the offset of each slice. To resume, `fill`
loads the weights on rank 0, and `read` fills the optimizer's state of any rank from files that any number of ranks have
written.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from emocap_pretrain.checkpoint.layout import HEADER, WEIGHTS
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.training.optimizer import State
from emocap_pretrain.training.state_layout import Slice, file_of
from emocap_pretrain.training.zero import StateSlice

# Schema 1 stores global states as tensors. Version 0.1.0 wrote no schema, and Adam's `step` as `updates` in the header.
SCHEMA = 1


class Snapshot:
    """Holds this rank's share of the training state after one step, in host memory.

    The memory is allocated once and used again for each snapshot, so a snapshot must be released before the next one is
    taken. `write` reads only this memory and calls no collective, so another thread may call it while training
    continues.

    The order of calls is `take` (training thread), then `require_finite` and `write` (any thread), then `release`.
    There is no lock: between `take` and `release` nobody writes to the memory.
    """

    def __init__(self, rank: int, device: str) -> None:
        self._rank, self._pinned = rank, device.startswith("cuda")
        self._weights, self._state = dict[str, Tensor](), dict[str, Tensor]()
        self._header = dict[str, str]()
        self._copied: torch.cuda.Event | None = None
        self._taken = False

    @property
    def weights(self) -> Mapping[str, Tensor]:
        """The weights of the whole model on rank 0, valid until the release; empty on the other ranks."""
        self._wait_for_copies()
        return self._weights

    def require_finite(self) -> None:
        """Checks that all numbers of this rank's share are finite.

        Training could not resume from NaN or infinite values, so a checkpoint must not contain them.

        Raises:
            CheckpointError: If a value is not finite.
        """
        self._wait_for_copies()
        for name, tensor in (self._weights | self._state).items():
            if not torch.isfinite(tensor).all():
                raise CheckpointError(
                    f"{name} is not finite, and no later step can repair that. The earlier checkpoints are kept: "
                    "begin a new run with a smaller optimizer.lr or a longer warm-up."
                )

    def write(self, folder: Path) -> None:
        """Writes `engine/rank-<rank>.safetensors`, and on rank 0 `model.safetensors`."""
        self._wait_for_copies()  # Only the thread that writes waits for the device.
        path = folder / file_of(self._rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(self._state, path, self._header)  # It writes these tensors to the disk without another copy.
        if self._weights:
            save_file(self._weights, folder / WEIGHTS)

    def release(self) -> None:
        self._taken = False

    def take(self, weights: Iterable[tuple[str, Tensor]], slices: Iterable[StateSlice], global_: State) -> None:
        """Copies the state from the device to host memory. Only the engine calls this.

        Args:
            weights: The weights of the whole model. Every rank iterates over them, and rank 0 alone copies them.
            slices: The slices of the optimizer's state that this rank stores.
            global_: The optimizer's single numbers and vectors of them, which every rank stores (`zero.global_state`).

        Raises:
            CheckpointError: If the previous snapshot is not released yet.
        """
        if self._taken:
            raise CheckpointError(
                "the previous snapshot is still being written: release it before the next one is taken."
            )
        self._taken = True
        offsets = dict[str, int]()
        for each in slices:
            offsets[each.slice.name] = each.slice.offset
            for field, tensor in (each.per_element | each.per_parameter).items():
                self._copy(self._state, f"{field}/{each.slice.name}", tensor)
        for field, scalar in global_.items():
            self._copy(self._state, field, scalar)
        # Every rank must iterate to the end, because under ZeRO stage 3 each tensor is gathered from all ranks.
        for name, tensor in weights:
            if self._rank == 0:
                self._copy(self._weights, name, tensor)
        # A single entry, because safetensors writes several entries in random order, and equal states must give equal
        # files.
        self._header = {HEADER: json.dumps({"schema": SCHEMA, "offsets": offsets})}
        # Once this event has happened, all copies that were queued before it are complete.
        if self._pinned:
            self._copied = torch.cuda.Event()
            self._copied.record()

    def _copy(self, buffers: dict[str, Tensor], name: str, tensor: Tensor) -> None:
        if name not in buffers:
            buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pinned)
        # The copy is queued on the device's stream before the next update, so the host does not have to wait for it.
        buffers[name].copy_(tensor, non_blocking=self._pinned)

    def _wait_for_copies(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()


def fill(model: nn.Module, path: Path) -> None:
    """Loads the weights in a checkpoint's `model.safetensors` into a model, before an `Engine` is made of the model.

    Raises:
        CheckpointError: If the names or shapes of the weights differ from those of the model.
    """
    saved, wanted = load_file(path), model.state_dict()
    for name in sorted(saved.keys() | wanted.keys()):
        shapes = [tuple(state[name].shape) if name in state else None for state in (saved, wanted)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"the checkpoint does not fit the model: {name} has shape {shapes[0]} there and {shapes[1]} here; "
                "set model as it was, or start a new run from another url."
            )
    model.load_state_dict(saved)


def read(paths: Iterable[Path], slices: Iterable[StateSlice], global_: Iterable[str]) -> State:
    """Fills the slices from the files of one checkpoint.

    From each file, only the elements that lie in one of the slices are read. The function compares the number of
    elements that it has read with the size of the slices, and so detects missing elements. This works however the state
    was divided when the files were written. If the function raises an error, some slices may already be filled.

    Args:
        paths: Files of the checkpoint, written by any number of ranks.
        slices: The slices of this rank's optimizer. Their tensors are overwritten.
        global_: Names of the tensors that every rank has stored (`OptimizerSpec.numbers`).

    Returns:
        The tensors that every rank has stored, by name.

    Raises:
        CheckpointError: If the files do not contain the whole state.
    """
    held, names = {each.slice.name: each for each in slices}, tuple(global_)
    # What every rank has stored counts once for each name: `found` collects it by name.
    missing = len(names) + sum(_elements(each) for each in held.values())
    found: State = {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            header = _header(file)
            found |= _read_global(file, header, names)
            for name, offset in header["offsets"].items():
                if name in held:
                    missing -= _read(file, offset, held[name])
    missing -= len(found)
    if missing:
        raise CheckpointError(f"the checkpoint's engine files lack {missing} numbers of the optimizer's state.")
    return found


def _header(file: Any) -> dict[str, Any]:
    header = json.loads(file.metadata()[HEADER])
    if header.setdefault("schema", 0) > SCHEMA:
        raise CheckpointError(
            f"the checkpoint's engine files have schema {header['schema']}, and this version reads up to {SCHEMA}: "
            "use the version that wrote them."
        )
    return header


def _elements(state: StateSlice) -> int:
    return sum(each.numel() for each in (*state.per_element.values(), *state.per_parameter.values()))


def _read_global(file: Any, header: Mapping[str, Any], names: Iterable[str]) -> State:
    if header["schema"] == 0:
        return {name: torch.tensor(float(header["updates"])) for name in names if name == "step"}
    stored = frozenset(file.keys())
    return {name: file.get_tensor(name) for name in names if name in stored}


def _read(file: Any, offset: int, target: StateSlice) -> int:
    """Copies the file's state of one parameter into `target`, and returns the number of copied elements.

    `offset` is the index, within the flattened parameter, of the first element whose state is in the file.
    """
    mine, stored, count = target.slice, frozenset(file.keys()), 0
    for field in target.per_element:
        key = f"{field}/{mine.name}"
        # `get_slice` reads nothing yet. Indexing it reads only the elements that this rank needs.
        flat = file.get_slice(key) if key in stored else None
        both = mine.overlap(Slice(mine.name, offset, flat.get_shape()[0])) if flat else None
        if flat and both:
            target.part(both).per_element[field].copy_(flat[both.offset - offset : both.end - offset])
            count += both.length
    for field, tensor in target.per_parameter.items():
        key = f"{field}/{mine.name}"
        whole = file.get_tensor(key) if key in stored else None
        if whole is not None and whole.shape == tensor.shape:
            tensor.copy_(whole)
            count += whole.numel()
    return count
