"""The losses of open_clip, loaded from its file `loss.py` alone.

`import open_clip` imports torchvision, which does not load with a CPU build of torch (docs/decisions, page 5).
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
    """Returns the module `open_clip.loss` without importing its package."""
    package = find_spec("open_clip")
    assert package is not None
    assert package.origin is not None
    spec = spec_from_file_location("open_clip_loss_file", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


losses = load()
