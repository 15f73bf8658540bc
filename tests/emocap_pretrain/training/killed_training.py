"""Trains a run on the ranks of torchrun. In the first attempt, rank 1 is killed after it has computed step 5."""

import os
import signal

from emocap_pretrain.run import main
from emocap_pretrain.training.engine import Engine, Forward, Metrics

_update = Engine.update


def _update_and_die(engine: Engine, forward: Forward, **options: object) -> Metrics:
    metrics = _update(engine, forward, **options)  # pyright: ignore[reportArgumentType]
    if engine.step == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    return metrics


if __name__ == "__main__":
    Engine.update = _update_and_die
    main()
