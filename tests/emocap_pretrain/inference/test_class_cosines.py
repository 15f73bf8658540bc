from typing import Any

import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from emocap_pretrain.inference.classes import class_cosines

IMAGES, TEMPLATES, WIDTH, CLASSES = 60, 40, 8, 5


class LargestResult(TorchDispatchMode):
    """Notes the largest number of elements of any tensor that is made while the mode is active."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.elements = max(self.elements, made.numel() if torch.is_tensor(made) else 0)
        return made


def test_the_mean_over_templates_is_that_of_the_cosines_and_needs_no_cosine_with_each_template() -> None:
    torch.manual_seed(0)
    images = normalize(torch.randn(IMAGES, WIDTH), dim=-1)
    columns = normalize(torch.randn(TEMPLATES, WIDTH, CLASSES), dim=1)
    with LargestResult() as largest:
        found = class_cosines(images, columns, "logits")
    assert torch.allclose(found, (images @ columns).mean(0), atol=1e-6, rtol=0)
    assert largest.elements <= max(IMAGES * CLASSES, TEMPLATES * WIDTH * CLASSES)
