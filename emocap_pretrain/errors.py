"""Defines all errors that this package raises on purpose.

    EmocapError
    ├── ConfigError        a value that cannot work; raised before any process starts
    ├── DataError          samples or captions that the model cannot be trained on
    ├── TrainingError      the run cannot continue (non-finite loss)
    │   ├── LostContact    another rank has ended or hangs; the run itself can resume
    │   ├── Superseded     a newer attempt of the run has taken over
    │   └── RolledBack     the loss guard refused a loss: the run returns to its newest checkpoint
    ├── CheckpointError    a checkpoint that is absent, damaged, of another run, or that could not be saved
    └── TrackingError      the tracker refused the run at its start

Each message is one line that says what is wrong, where, and what to do.

The class of an error decides what follows it. `terminal.errors_as_lines` ends a command with exit code 2 after a
`ConfigError`, and with 1 after any other error of this tree. `RankGroup` raises a `ConfigError` or `Superseded` of one
rank unchanged on all ranks. `run_folder.attempts` lists the classes after which a driver does not start the ranks again
(`FINAL`), and those that a later attempt may not meet (`PASSING`).
"""


class EmocapError(Exception):
    """Is the base class of all errors of this package. The command line prints such an error without a traceback."""


class ConfigError(EmocapError):
    """A setting or option has a wrong value. The message names the setting, the rule that it breaks, and the remedy."""


class DataError(EmocapError):
    """Samples, captions or labels cannot be used for this run."""


class TrainingError(EmocapError):
    """Training cannot continue."""


class LostContact(TrainingError):  # noqa: N818 - not an error of this rank
    """Another rank has died or hangs, so this rank cannot continue. A new attempt can resume the run.

    This error is a consequence of the failure of another rank. So a record of it counts as the cause of the end of an
    attempt only if no rank has recorded another failure (`run_folder.attempts.cause`).
    """


class Superseded(TrainingError):  # noqa: N818
    """The attempt that raises this error must not write any more.

    A newer attempt of the run has taken over, or the run's folder was deleted.
    """


class RolledBack(TrainingError):  # noqa: N818
    """The loss guard has refused an update, and the run returns to its newest checkpoint.

    When training reaches the step of that update again, it leaves the update out. A driver starts the next attempt at
    once and does not count it as a restart, because `health.max_skips` limits the roll-backs of a run.
    """


class CheckpointError(EmocapError):
    """A checkpoint is absent or damaged, does not belong to this run, or could not be saved."""


class TrackingError(EmocapError):
    """MLflow cannot be used, or has not accepted all results.

    Training raises it only when it opens the tracker. Later, rows wait in a spool until MLflow accepts them.
    """
