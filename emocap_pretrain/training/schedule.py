"""The learning rate as a function of the step."""

import math

from emocap_pretrain.config.schema import OptimizerConfig


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """Linear over the warm-up, then half a cosine down to `lr` x `final_share` at the last step.

    Args:
        settings: The optimizer's settings.
        step: Steps done before this one, from 0.
        steps: Length of the run.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return settings.lr * (settings.final_share + (1 - settings.final_share) * cosine)
