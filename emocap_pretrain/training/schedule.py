"""Computes the learning rate of each step.

The rate is a pure function of the settings, the step and the number of steps, so a checkpoint stores nothing for it.
"""

import math

from emocap_pretrain.config.optimizer import OptimizerConfig


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """Returns the learning rate of a step.

    It grows linearly to `lr` during the warm-up. What follows depends on `schedule`: "cosine" falls along half a cosine
    to `lr * final_share` at the last step; "wsd" stays at `lr` and falls to `lr * final_share` in the last
    `decay_steps` steps; "constant" stays at `lr`.

    Example:
        settings = OptimizerConfig(lr=0.1, warmup_steps=0, schedule="wsd", decay_steps=2)
        [learning_rate(settings, step, 4) for step in range(4)]  # [0.1, 0.1, 0.05, 0.0]

    Args:
        settings: The settings of the optimizer.
        step: Number of steps done before this one.
        steps: Number of steps of the whole run. A later step has the rate of the last one.
    """
    # The first step has `step` 0 and already a rate above 0. The last step has `steps - 1`, where the decay ends.
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    match settings.schedule:
        case "constant":
            return settings.lr
        case "cosine":
            progress = (step - settings.warmup_steps) / max(1, steps - 1 - settings.warmup_steps)
            share = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        case "wsd":
            share = _wsd(settings, step, steps)
    return settings.lr * (settings.final_share + (1 - settings.final_share) * share)


def note_on_warmup(settings: OptimizerConfig, steps: int) -> str | None:
    """Returns a line that says that a run ends within its warm-up, so that it never reaches `lr`; None if it does not.

    A run of few steps easily does, because the default warm-up has 500 steps.
    """
    if not 0 < steps < settings.warmup_steps:
        return None
    return (
        f"optimizer.warmup_steps={settings.warmup_steps:,} is more than steps={steps:,}: the learning rate only grows, "
        f"to {learning_rate(settings, steps - 1, steps):.3g} of {settings.lr:.3g}; set it to {steps // 10} or so."
    )


def first_decayed_step(settings: OptimizerConfig, steps: int) -> int:
    """Returns the first step whose rate the decay of "wsd" lowers: the number of steps before it.

    By default the decay takes a fifth of all steps. In a run that has no room for it after the warm-up, it is shorter.
    """
    length = settings.decay_steps if settings.decay_steps is not None else max(1, round(steps / 5))
    return max(steps - length, settings.warmup_steps)


def _wsd(settings: OptimizerConfig, step: int, steps: int) -> float:
    first = first_decayed_step(settings, steps)
    progress = min(1.0, max(0, step + 1 - first) / max(1, steps - first))
    return 1 - (math.sqrt(progress) if settings.decay_shape == "sqrt" else progress)
