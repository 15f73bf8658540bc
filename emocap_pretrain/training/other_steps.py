"""Says what differs when a run resumes: the learning rate with another number of steps, and the samples of tars."""

from emocap_shards.cursor import Cursor

from emocap_pretrain.checkpoint.manifest import Checkpoint
from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.training.schedule import learning_rate


def note_on_other_steps(rate: OptimizerConfig, steps: int, checkpoint: Checkpoint) -> str | None:
    """Describes how the learning rate changes because the run has another number of steps than before.

    Args:
        rate: The optimizer settings of the resumed run, which have the learning rates.
        steps: Its number of steps.
        checkpoint: The checkpoint from which the run resumes. Its config has the former setting `steps`.

    Returns:
        One line. It is None if the number of steps is the same, if the checkpoint was saved before the first step,
        because there was no learning rate yet, or if the schedule is constant and there are steps left.
    """
    stored, done = checkpoint.state.get("config"), checkpoint.step
    before = stored.get("steps") if isinstance(stored, dict) else None
    if not done or not isinstance(before, int) or before == steps:
        return None
    head = f"steps was {before:,} until step {done:,} and is {steps:,} now"
    if done >= steps:
        return f"{head}: there is no step left to train."
    if rate.schedule == "constant":
        return None
    now = f"{learning_rate(rate, done, steps):.3g}"
    end = f"{learning_rate(rate, steps - 1, steps):.3g}"
    if done >= before:
        ended = f"{learning_rate(rate, before - 1, before):.3g}"
        return (
            f"{head}: the learning rate had ended its decay at {ended} in step {before:,}; it returns to {now} in "
            f"step {done + 1:,} and falls to {end} in step {steps:,}."
        )
    was = f"{learning_rate(rate, done, before):.3g}"
    change = f"is {now} instead of {was}" if now != was else f"stays {now}"
    return f"{head}: the learning rate of step {done + 1:,} {change}, and falls to {end} at the new end."


def note_on_fresh_pass(data: DataConfig, start: Cursor) -> str | None:
    """Says that a run on tars (`data.webdataset`) which resumes within an epoch does not continue at the exact sample.

    The result is None for packed datasets, and if the run begins an epoch at the cursor `start`.
    """
    if data.webdataset is None or not start.position:
        return None
    left, samples = data.webdataset.samples - start.position, data.webdataset.samples
    return (
        f"data.webdataset cannot continue at the exact sample: for the last {left:,} of the {samples:,} samples of "
        f"epoch {start.epoch}, the run reads the tars from their beginning, in another order. It has seen some of "
        "these samples in this epoch already."
    )
