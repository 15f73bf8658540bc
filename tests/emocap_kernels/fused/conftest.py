"""Fused kernels run on a GPU, or in Triton's interpreter if TRITON_INTERPRET=1 is set before Triton is imported."""

import os

import pytest
import torch
from emocap_kernels.fused import tiling

RUNS = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if RUNS else ["test_fused_*.py", "test_region_fused_*.py"]


@pytest.fixture
def small_chunks(monkeypatch):
    """Makes panels of one tile of rows, and chunks of one tile of columns, for every tile."""
    monkeypatch.setattr(tiling, "MAX_PANEL_ROWS", 1)
    monkeypatch.setattr(tiling, "CHUNK_BYTES", 1)
    monkeypatch.setattr(tiling, "PROGRAMS", 1)
