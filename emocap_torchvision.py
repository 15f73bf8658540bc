"""Makes torchvision importable with a CPU build of torch, for every library that imports it.

timm, open_clip and the part of transformers that handles images import torchvision, and torchvision's wheels on PyPI
are linked against CUDA. With a CPU build of torch their C++ part does not load. Then `import torchvision` fails when it
registers a function for the operator `torchvision::nms`, which does not exist and which this project does not call.

`install` adds an import finder that declares the missing operators just before torchvision is executed. No file of the
wheel is changed, and a call of the operators still fails. With a CUDA build of torch, or with a torchvision whose C++
part loads, nothing is declared (decision 5).

`launch/setup.sh` lets every Python process of its environment call `install` at its start. The modules of this project
that import timm or transformers call it too, so they also work in other environments. This module must therefore stay
cheap to import: it imports only `sys`. It is not a module of `emocap_pretrain`, because each start of Python would then
import the installed `emocap_pretrain`, before a program can put another checkout of it first on its path.
"""

import sys

TYPE_CHECKING = False  # Type checkers know this name. The import of `typing` would take longer than all of this module.
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries: list[object] = []  # The declarations live as long as these objects.


class DeclareOperators:
    """Declares missing operators of torchvision before its code is executed, as a finder of `sys.meta_path`.

    The other finders find torchvision; this one only wraps the loader that they return. So a process that only asks
    whether torchvision is installed, as transformers does, does not import torch.
    """

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if fullname != "torchvision":
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def declare_and_execute(module: "ModuleType") -> None:
                _declare(spec.submodule_search_locations or ())
                execute(module)

            spec.loader.exec_module = declare_and_execute
        return spec


def _declare(folders: "Sequence[str]") -> None:
    """Declares the operators that are missing; `folders` are the folders of the package torchvision."""
    from pathlib import Path

    import torch

    if torch.version.cuda is not None:
        return
    for extension in (path for folder in folders for path in Path(folder).glob("_C*.so")):
        try:
            # A wheel for CPUs declares the operators itself, and nothing may be declared twice.
            torch.ops.load_library(str(extension))
        except OSError:
            continue  # It is linked against CUDA. torchvision, too, ignores that it does not load.
    missing = [schema for schema in SCHEMAS if not hasattr(torch.ops.torchvision, schema.partition("(")[0])]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in missing:
        library.define(schema)
    _libraries.append(library)


def install() -> None:
    """Puts the finder `DeclareOperators` first in `sys.meta_path`.

    It does nothing if the finder is already there, or if torchvision is already imported.
    """
    if "torchvision" not in sys.modules and not any(isinstance(each, DeclareOperators) for each in sys.meta_path):
        sys.meta_path.insert(0, DeclareOperators())
