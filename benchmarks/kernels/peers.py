"""Calls losses of other packages, each in the way that its authors document.

All losses are exact and symmetric: a loss with a softmax is the mean over two directions, image to text and text to
image. The packages are optional and have no type hints. Only this module imports them, and only when their loss is
called.
"""

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .batches import PairBatch
from .device import UnableError

_INSTALL = "not installed; pip install --no-deps -r benchmarks/kernels/requirements.txt"
_INF_CL_HEAD = 256


def open_clip(batch: PairBatch) -> Tensor:
    """Computes open_clip's ClipLoss, which keeps two matrices of scores for the backward pass."""
    with _autocast(batch):
        return _open_clip().ClipLoss()(batch.image, batch.text, batch.scale)


def open_clip_sigmoid(batch: PairBatch) -> Tensor:
    """Computes open_clip's SigLipLoss."""
    with _autocast(batch):
        return _open_clip().SigLipLoss()(batch.image, batch.text, batch.scale, batch.bias)


def inf_cl(batch: PairBatch) -> Tensor:
    """Computes Inf-CL on one device, where it computes the scores in tiles, but does not communicate.

    Its argument `scale` would need a process group, because Inf-CL all-reduces the gradient of the scale. So one of the
    two embedding matrices is multiplied by the scale before the call, which gives the same loss.
    """
    if batch.image.shape[1] % _INF_CL_HEAD:
        raise UnableError(f"width={batch.image.shape[1]} must be a multiple of {_INF_CL_HEAD} for Inf-CL.")
    loss = _peer("inf_cl").cal_inf_loss
    return (loss(batch.scale * batch.image, batch.text) + loss(batch.scale * batch.text, batch.image)) / 2


def cut_cross_entropy(batch: PairBatch) -> Tensor:
    """Computes Cut Cross-Entropy without its filter of small gradients.

    The filter is made for large vocabularies, and would drop terms that matter here.
    """
    loss = _peer("cut_cross_entropy").linear_cross_entropy
    return _both_directions(batch, lambda rows, columns, own: loss(rows, columns, own, filter_eps=None, impl="cce"))


def liger(batch: PairBatch) -> Tensor:
    """Computes Liger's loss with gradients summed in float32; by default Liger uses the dtype of the inputs."""
    loss = _peer("liger_kernel.transformers.functional").liger_fused_linear_cross_entropy
    return _both_directions(batch, lambda rows, columns, own: loss(rows, columns, own, accum_dtype=torch.float32))


def _both_directions(batch: PairBatch, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    """Computes the symmetric loss: the mean of `loss` from images to texts, and from texts to images.

    `loss` has no argument for the scale, so its first argument is multiplied by the scale.
    """
    own = torch.arange(len(batch.image), device=batch.image.device)
    forth = loss(batch.scale * batch.image, batch.text, own)
    return (forth + loss(batch.scale * batch.text, batch.image, own)) / 2


def _autocast(batch: PairBatch) -> torch.autocast:
    """Returns the context in which open_clip computes its loss: half-precision products and a float32 softmax."""
    half = batch.image.dtype if batch.image.dtype in (torch.bfloat16, torch.float16) else None
    return torch.autocast(batch.image.device.type, dtype=half, enabled=half is not None)


def _peer(name: str) -> Any:
    """Imports a module of another package, or raises an UnableError with the command that installs the package."""
    if find_spec(name.partition(".")[0]) is None:
        raise UnableError(_INSTALL)
    return import_module(name)


def _open_clip() -> Any:
    """Returns the module loss.py of open_clip without the rest of the package, which would import torchvision."""
    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise UnableError(_INSTALL)
    spec = spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    if spec is None or spec.loader is None:
        raise UnableError("open_clip has no file loss.py in its package folder")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
