"""Compiles the towers of a model with torch.compile, and checks before that whether this host has what that needs."""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from emocap_pretrain.data.batch import Texts
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.pair import TowerPair

_Rows = TypeVar("_Rows", Tensor, Texts)
_Encoded = TypeVar("_Encoded")


def require_compiler(device: str) -> None:
    """Checks that torch.compile can make kernels for a device on this host.

    Args:
        device: The device of a rank, such as "cpu" or "cuda:0".

    Raises:
        ConfigError: If there is no C or C++ compiler, if the headers of Python are missing, or if triton is missing for
            a GPU.
    """
    missing = list[str]()
    if device.startswith("cuda"):
        from torch.utils._triton import has_triton

        # Triton compiles the code that starts its kernels with a C compiler.
        names, kind, package = (os.environ.get("CC", "gcc"), "clang"), "C", "gcc"
        missing += [] if has_triton() else ["triton (install the extra gpu)"]
    else:
        names, kind, package = (os.environ.get("CXX", "g++"), "clang++"), "C++", "g++"
    if not any(shutil.which(name) for name in names):
        missing.append(f"a {kind} compiler (install {package})")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        missing.append("the headers of Python (install python3-dev)")
    if missing:
        raise ConfigError(
            f"engine.compile=true needs {' and '.join(missing)} on each host of the ranks; or set engine.compile=false."
        )


def compile_towers(model: TowerPair, *, backend: str = "inductor") -> None:
    """Makes the towers compile themselves when they first encode images or texts. The names of weights do not change.

    A single image or text is encoded without compiled code.

    Args:
        model: The model, before it is passed to DeepSpeed.
        backend: The backend of torch.compile. Tests also use "aot_eager", which needs no compiler.
    """
    # Kernels with random numbers of their own would draw other dropout masks in the pass without gradients than in the
    # pass with them, which cached representations need to be equal (decision 18).
    options: dict[str, Any] | None = {"fallback_random": True} if backend == "inductor" else None
    for tower, name in ((model.image, "encode_image"), (model.text, "encode_text")):
        plain = getattr(tower, name)
        setattr(tower, name, _compiled_from_two(plain, torch.compile(plain, backend=backend, options=options)))


def _compiled_from_two(
    plain: Callable[[_Rows], _Encoded], compiled: Callable[[_Rows], _Encoded]
) -> Callable[[_Rows], _Encoded]:
    """Returns a function that calls `compiled` for two or more rows, and `plain` for others.

    With one row, the gradients of the class token and of the position embeddings are views of the same memory in torch
    2.13, because a sum over one row is the row itself. Whatever then changes one gradient in place also changes the
    other: the addition of a second backward pass, or clipping. test_compiled_towers.py shows it in a few lines.
    """

    @functools.wraps(plain)
    def encode(rows: _Rows) -> _Encoded:
        count = rows.shape[0] if isinstance(rows, Tensor) else rows.ids.shape[0]
        return compiled(rows) if count > 1 else plain(rows)

    return encode
