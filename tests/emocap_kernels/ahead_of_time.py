"""Compiles kernels for GPUs without having one, and reads what the assembler reports about the result."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOOLS = Path(sys.modules["triton"].__file__ or "").parent / "backends/nvidia/bin"
POINTERS = {
    "row_groups_ptr_R": "*i32",
    "column_groups_ptr_C": "*i32",
    "indices_ptr_TRK": "*i32",
    "running_max_ptr": "*i1",
    "image_ptr_RD": "*bf16",
    "text_ptr_RD": "*bf16",
    "mask_ptr_IS": "*u8",
    "similar_ptr_IR": "*u8",
    "starts_ptr_I": "*i32",
}
# The axes of the tile of a descriptor, for all kernels except those that have pieces of patches.
TILES = {
    "mask_desc_RC": ("bR", "bC"),
    "gradient_desc_RC": ("bR", "bC"),
    "sentence_desc_RD": ("bR", "bD"),
    "own_desc_CD": ("bC", "bD"),
}
REGION_TILES = {
    "sentence_desc_SD": ("bS", "bD"),
    "patch_desc_PD": ("bP", "bD"),
    "patch_desc_PD_1": ("bP_1", "bD"),
    "patch_desc_PD_2": ("bP_2", "bD"),
    "gradient_desc_SIP": ("bS", "1", "bP"),
    "gradient_desc_SIP_1": ("bS", "1", "bP_1"),
    "gradient_desc_SIP_2": ("bS", "1", "bP_2"),
}
NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Compiled:
    """The result of compiling one kernel.

    Attributes:
        ptx: The assembly.
        shared_bytes: Shared memory of a program.
        stack_bytes: Local memory of a thread, to which registers are spilled.
    """

    ptx: str
    shared_bytes: int
    stack_bytes: int


def compiled(kernel: Any, capability: int, dtype: str, options: dict[str, Any], folder: Path) -> Compiled:
    """Compiles `kernel` for a compute capability, such as 90, with the constants and compiler options in `options`."""
    settings = {key: options[key] for key in ("num_warps", "num_stages", "enable_fp_fusion") if key in options}
    constants = {key: value for key, value in options.items() if key not in settings}
    for name, axes in REGION_TILES.items():
        # This piece of the patches does not exist.
        if ("bP" in constants and constants.get(axes[-1]) == 1) or constants.get(axes[0]) == 1:
            constants[name] = None
    if constants.get("MASKED") is False:
        constants["keep_ptr_IP"] = None
    signature = {name: _type_of(name, constants, NAMES[dtype]) for name in kernel.arg_names}
    if constants.get("RULE", 2) != 2:
        signature["mask_desc_RC"], constants["mask_desc_RC"] = "constexpr", None
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=places)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=settings)
    binary = folder / f"{kernel.__name__}.cubin"
    binary.write_bytes(found.asm["cubin"])
    usage = subprocess.run([TOOLS / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True)
    (stack,) = re.findall(r"STACK:(\d+)", usage.stdout)
    return Compiled(found.asm["ptx"], found.metadata.shared, int(stack))


def _type_of(name: str, constants: dict[str, Any], dtype: str) -> str:
    """Returns the type of an argument in Triton's notation."""
    if name in constants:
        return "constexpr"
    if "_desc" in name:
        tiles = REGION_TILES if "bP" in constants else TILES
        side = "bC" if "text" in name or "right" in name else "bR"
        axes = tiles.get(name, (side, "bD"))
        sizes = ",".join(str(constants.get(axis, axis)) for axis in axes)
        return f"tensordesc<{'u8' if name == 'mask_desc_RC' else dtype}[{sizes}]>"
    if name == "keep_ptr_IP":
        return "*u8"
    if name in ("patches_ptr_IPD", "sentences_ptr_ND", "by_patch_ptr_IPD"):
        return f"*{dtype}"
    if "_ptr" in name:
        return POINTERS.get(name, "*fp32")
    return "fp32" if name in ("threshold", "storage_scale", "slope", "sharpness") else "i32"
