"""Makes torchvision importable with a CPU build of torch. The modules of the towers import this module first.

timm always imports torchvision, and torchvision's wheels on PyPI are linked against CUDA. With a CPU build of torch
their C++ part does not load. Then `import torchvision` fails when it registers a function for the operator
`torchvision::nms`, which does not exist and which this project does not call. So, if torch has no CUDA, this module
declares the operators `nms` and `qnms` before torchvision is imported. No file of the wheel is changed, and a call of
the operators still fails. With a CUDA build of torch this module does nothing (decision 5).

The part of transformers that handles images imports torchvision too. So each module that defines a tower calls
`install()` before it imports timm or transformers. These imports are therefore not at the top of those modules.
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
    """Declares the operators in `SCHEMAS` when torchvision is first imported.

    Python asks its import finders, one after another, for each module that it imports. When Python asks this finder for
    torchvision, the finder makes the declaration. It always answers that it does not know the module, so Python asks
    the next finder. A process that never imports torchvision does not spend time on the declaration.
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
    """Puts the finder `_DeclareOperators` first in `sys.meta_path`.

    It does nothing if the finder is there already, or if torchvision was imported before.
    """
    if "torchvision" not in sys.modules and not any(isinstance(each, _DeclareOperators) for each in sys.meta_path):
        sys.meta_path.insert(0, _DeclareOperators())


install()
