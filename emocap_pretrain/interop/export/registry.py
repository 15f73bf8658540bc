"""Lists the formats of exports.

A new format needs a module with a `FORMAT`, a loader in `fresh_process.py`, and its name in `cli/export.py`.
"""

from collections.abc import Mapping

from emocap_pretrain.interop.export import portable, to_onnx, to_open_clip, to_torch, to_transformers
from emocap_pretrain.interop.export.formats import ExportFormat

FORMATS: Mapping[str, ExportFormat] = {
    each.name: each
    for each in (to_transformers.FORMAT, to_open_clip.FORMAT, to_onnx.FORMAT, to_torch.FORMAT, portable.FORMAT)
}
