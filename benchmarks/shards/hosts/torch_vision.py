"""Makes torchvision, which the peers import, importable with a CPU build of torch.

torchvision's wheels on PyPI are linked against CUDA; beside a CPU build of torch their C++ part does not load, and the
import fails where it describes `torchvision::nms`, which nobody here calls. Declaring the operators first is enough.
"""

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def declare_operators() -> torch.library.Library | None:
    """The declarations live as long as what this returns."""
    if torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


DECLARED = declare_operators()
