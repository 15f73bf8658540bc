"""The settings of a run that two CPU cores train in seconds; tests change what they are about."""

from typing import Any


def tiny(
    url: str, data: str, tracking: str, artifacts: str | None, *, steps: int = 4, ranks: int = 1, **sections: Any
) -> dict[str, Any]:
    """Returns the settings of a run of `steps` steps of 8 samples, as a tree.

    Args:
        url: The run's folder.
        data: The training data: 24 faces or so at 32 pixels.
        tracking: MLflow's URI.
        artifacts: MLflow's folder for files; None leaves it to the server.
        steps: Number of steps.
        ranks: Number of ranks.
        sections: Settings that are added to a section of the same name, or replace a single value.
    """
    tree: dict[str, Any] = {
        "name": "tiny",
        "url": url,
        "steps": steps,
        "global_batch": 8,
        "data": {"url": data, "workers": 0, "shuffle_window": 12},
        "model": {
            "embedding": 16,
            "image": {
                "name": "vit_tiny_patch16_224",
                "pixels": 16,
                "options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
            },
            "text": {
                "architecture": {"width": 32, "layers": 1, "heads": 2},
                "vocabulary": 320,
                "lengths": {"global": 16, "local": 16, "summary": 24},
            },
        },
        "optimizer": {"lr": 1e-3, "warmup_steps": 1},
        "cluster": {"ranks": ranks, "device": "cpu", "threads_per_rank": 1},
        "checkpoint": {"every_steps": 2},
        "tracking": {"uri": tracking, "artifacts": artifacts, "every_steps": 1},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return tree
