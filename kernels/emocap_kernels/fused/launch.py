"""The one place where a kernel is started: what Triton makes of its Python signature, no type checker knows."""

from __future__ import annotations

from typing import Any


def launch(kernel: Any, grid: tuple[int, ...], *arguments: object, **options: object) -> None:
    """Starts `kernel` on a grid of programs; nothing is started on an empty one."""
    if all(size > 0 for size in grid):
        kernel[grid](*arguments, **options)
