"""The losses of other packages, each symmetric and exact, called as its authors document.

They are optional and untyped, so this is the one place that imports by name.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .outcome import UnableError
from .pairs import Pairs

_INSTALL = "not installed; pip install --no-deps -r benchmarks/kernels/requirements.txt"
_INF_CL_HEAD = 256


def open_clip(batch: Pairs) -> Tensor:
    """ClipLoss: two products, both matrices kept for backward."""
    with _as_it_trains(batch):
        return _open_clip().ClipLoss()(batch.image, batch.text, batch.scale)


def open_clip_sigmoid(batch: Pairs) -> Tensor:
    with _as_it_trains(batch):
        return _open_clip().SigLipLoss()(batch.image, batch.text, batch.scale, batch.bias)


def inf_cl(batch: Pairs) -> Tensor:
    """Inf-CL on one device, where it takes its tiles without the ring.

    Its `scale` argument all-reduces a gradient and so wants a process group; a product outside is the same loss.
    """
    if batch.image.shape[1] % _INF_CL_HEAD:
        raise UnableError(f"width={batch.image.shape[1]} is no multiple of {_INF_CL_HEAD}, which Inf-CL needs.")
    loss = _peer("inf_cl").cal_inf_loss
    return (loss(batch.scale * batch.image, batch.text) + loss(batch.scale * batch.text, batch.image)) / 2


def cut_cross_entropy(batch: Pairs) -> Tensor:
    """Without the gradient filter, whose threshold is made for vocabularies and drops what this loss needs."""
    loss = _peer("cut_cross_entropy").linear_cross_entropy
    return _both_directions(batch, lambda rows, columns, own: loss(rows, columns, own, filter_eps=None, impl="cce"))


def liger(batch: Pairs) -> Tensor:
    """Liger's loss with float32 sums of the gradients: its default adds up chunks in the type of the inputs."""
    loss = _peer("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return _both_directions(batch, lambda rows, columns, own: loss(rows, columns, own, accum_dtype=torch.float32))


def _both_directions(batch: Pairs, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Rows against columns and columns against rows, from a loss that knows one direction and no scale."""
    own = torch.arange(len(batch.image), device=batch.image.device)
    forth = loss(batch.scale * batch.image, batch.text, own)
    return (forth + loss(batch.scale * batch.text, batch.image, own)) / 2


def _as_it_trains(batch: Pairs) -> torch.autocast:
    """open_clip computes its loss under autocast: products in half precision, the softmax in float32."""
    half = batch.image.dtype if batch.image.dtype in (torch.bfloat16, torch.float16) else None
    return torch.autocast(batch.image.device.type, dtype=half, enabled=half is not None)


def _peer(name: str) -> Any:
    if find_spec(name.partition(".")[0]) is None:
        raise UnableError(_INSTALL)
    return import_module(name)


def _open_clip() -> Any:
    """Its loss.py alone: the whole package wants torchvision and more, of which the losses need nothing."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise UnableError(_INSTALL)
    spec = spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    if spec is None or spec.loader is None:
        raise UnableError("open_clip has no loss.py where it should be")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
