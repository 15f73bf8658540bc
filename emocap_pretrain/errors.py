"""Defines all errors that this package raises on purpose.

    EmocapError
    ├── ConfigError        a value that cannot work; raised before any process starts
    ├── DataError          samples or captions that the model cannot be trained on
    ├── TrainingError      the run cannot continue (non-finite loss)
    │   ├── LostContact    another rank has ended or hangs; the run itself can resume
    │   ├── Superseded     a newer attempt of the run has taken over
    │   └── RolledBack     a loss was not finite or a spike: the run returns to its newest checkpoint
    ├── CheckpointError    a checkpoint that is absent, damaged, or of another run
    └── TrackingError      the tracker refused the run at its start

Each message is one line that says what is wrong, where, and what to do.
"""


class EmocapError(Exception):
    """The base class; the command line prints the message without a traceback."""


class ConfigError(EmocapError):
    """A wrong value of a setting or option; the message has its place, the rule, and what to do."""


class DataError(EmocapError):
    """Samples, captions or labels cannot be used for this run."""


class TrainingError(EmocapError):
    """Training cannot continue."""


class LostContact(TrainingError):  # noqa: N818 - not an error of this rank
    """Another rank has died or hangs."""


class Superseded(TrainingError):  # noqa: N818
    """A newer attempt of the run has taken over; this one must not write any more."""


class RolledBack(TrainingError):  # noqa: N818
    """The run returns to its newest checkpoint, and leaves out the bad update when it reaches that step again."""


class CheckpointError(EmocapError):
    """A checkpoint is absent or damaged, or does not belong to this run."""


class TrackingError(EmocapError):
    """The tracker cannot be used, or has not accepted all results."""
