"""Makes torchvision importable with a CPU build of torch. The modules of the towers import this module first.

timm always imports torchvision, and torchvision's wheels on PyPI are linked against CUDA. With a CPU build of torch
their C++ part does not load, and `import torchvision` fails where it registers the shapes of `torchvision::nms`, an
operator that this project does not call. So, if torch has no CUDA, this module declares the schemas of `nms` and `qnms`
before torchvision is imported. No file of the wheel is changed, and calling the operators still fails with
torchvision's own error. With a CUDA build of torch this module does nothing (decision 5).

transformers imports torchvision too, where it handles images. So each module of a tower calls `install()` before it
imports timm or transformers, and these imports are therefore not at the top of the modules.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _DeclareOperators(MetaPathFinder):
    """An import finder that declares `SCHEMAS` when torchvision is first imported. It finds no module itself.

    Declaring at import time of torchvision, and not of this module, costs nothing in a process that never imports
    torchvision.
    """

    def __init__(self) -> None:
        self._library: object = None  # The declarations live as long as this object.

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "torchvision" and self._library is None:
            self._library = _declare()
        return None  # Python then asks the other finders, which find the real torchvision.


def _declare() -> object:
    import torch

    if torch.version.cuda is not None:
        return False  # Any value but None: it keeps `find_spec` from asking again.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        library.define(schema)
    return library


def install() -> None:
    """Puts the finder `_DeclareOperators` first in `sys.meta_path`, at most once in a process."""
    if "torchvision" not in sys.modules and not any(isinstance(each, _DeclareOperators) for each in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())


install()
