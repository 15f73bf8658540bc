"""Everything this package raises on purpose.

    EmocapError
    ├── ConfigError        a value that cannot work; raised before any process starts
    ├── DataError          samples or captions that the model cannot be trained on
    ├── TrainingError      the run cannot go on (non-finite loss, lost rank)
    ├── CheckpointError    a checkpoint that is absent, damaged, or of another run
    └── TrackingError      the tracker refused the run at its start

Each message is one line: what, where, and what to do.
"""


class EmocapError(Exception):
    """Root of the tree; the command line prints its message and no traceback."""


class ConfigError(EmocapError):
    """A value that cannot work, with the place where it stands, the rule and the cure."""


class DataError(EmocapError):
    """Samples, captions or labels that do not fit the job."""


class TrainingError(EmocapError):
    """Training cannot go on."""


class CheckpointError(EmocapError):
    """A checkpoint that cannot be believed or does not belong to this run."""


class TrackingError(EmocapError):
    """The tracker cannot be used."""
