"""Fused kernels run on a GPU, or in Triton's interpreter: TRITON_INTERPRET=1, set before Triton is imported."""

import os

import pytest
import torch
from emocap_kernels.fused import tiling

RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if RUNS else ["test_fused_*.py", "test_region_fused_*.py"]


@pytest.fixture
def small_chunks(monkeypatch):
    """Panels of one tile of rows and chunks of two tiles of columns, whatever the tile is."""
    monkeypatch.setattr(tiling, "MAX_PANEL_ROWS", 1)
    monkeypatch.setattr(tiling, "CHUNK_BYTES", 1)
    monkeypatch.setattr(tiling, "PROGRAMS", 1)
