"""Everything this package raises on purpose.

    EmocapError
    ├── ConfigError        a value that cannot work; raised before any process starts
    ├── DataError          samples or captions that the model cannot be trained on
    ├── TrainingError      the run cannot continue (non-finite loss)
    │   ├── LostContact    another rank has ended or hangs; the run itself can resume
    │   ├── Superseded     a newer start of the run has taken over
    │   └── RolledBack     the loss was no good: the run returns to its newest checkpoint
    ├── CheckpointError    a checkpoint that is absent, damaged, or of another run
    └── TrackingError      the tracker refused the run at its start

Each message is one line: what, where, and what to do.
"""


class EmocapError(Exception):
    """Root of the tree; the command line prints its message and no traceback."""


class ConfigError(EmocapError):
    """A value that cannot work, with its place, the rule and the cure."""


class DataError(EmocapError):
    """Samples, captions or labels that do not fit the job."""


class TrainingError(EmocapError):
    """Training cannot continue."""


class LostContact(TrainingError):  # noqa: N818 - a state of the world, not a fault of this rank
    """Another rank is gone or hangs."""


class Superseded(TrainingError):  # noqa: N818
    """A newer start of the run has taken over; this one must not write any more."""


class RolledBack(TrainingError):  # noqa: N818
    """The run returns to its newest checkpoint, and leaves out the update that was no good when it comes by again."""


class CheckpointError(EmocapError):
    """A checkpoint that cannot be believed or does not belong to this run."""


class TrackingError(EmocapError):
    """The tracker cannot be used."""
