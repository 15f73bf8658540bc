"""Computes the learning rate of a step."""

import math

from emocap_pretrain.config.schema import OptimizerConfig


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """Returns the learning rate: linear in the warm-up, then half a cosine to `lr` x `final_share` at the last step.

    Args:
        settings: The settings of the optimizer.
        step: Number of steps done before this one.
        steps: Number of steps of the whole run.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.lr * (settings.final_share + (1 - settings.final_share) * cosine)
