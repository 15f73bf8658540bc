"""The settings of a run that two CPU cores do in seconds."""

from typing import Any


def tiny(url: str, data: str, tracking: str, artifacts: str | None, *, steps: int, ranks: int) -> dict[str, Any]:
    return {
        "name": "tiny",
        "url": url,
        "steps": steps,
        "global_batch": 8,
        "data": {"url": data, "workers": 0, "shuffle_window": 12, "cache_gb": 0},
        "model": {
            "embedding": 16,
            "image": {
                "name": "vit_tiny_patch16_224",
                "pixels": 16,
                "options": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
            },
            "text": {
                "architecture": {"width": 16, "layers": 1, "heads": 2},
                "vocabulary": 300,
                "lengths": {"global": 16, "local": 16, "summary": 24},
            },
        },
        "cluster": {"ranks": ranks, "device": "cpu", "threads_per_rank": 1, "timeout_s": 120},
        "checkpoint": {"every_steps": 2},
        "tracking": {"uri": tracking, "artifacts": artifacts, "every_steps": 1},
    }
