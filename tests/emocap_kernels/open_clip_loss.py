"""open_clip's own losses, from its `loss.py` alone.

`import open_clip` imports torchvision, which does not load beside a CPU build of torch (docs/decisions, page 5).
"""

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def load() -> ModuleType:
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
