"""Defines all errors that this package raises on purpose.

    EmocapError
    ├── ConfigError        a setting or an option has a wrong value; most are found before any process starts
    ├── DataError          samples, captions or labels cannot be used for the run
    ├── TrainingError      training cannot continue, for example because the loss is not finite
    │   ├── LostContact    another rank has ended or hangs; a new attempt can resume the run
    │   ├── Superseded     a newer attempt of the run has taken over, or the run's folder was deleted
    │   └── RolledBack     the loss guard has refused an update: the run returns to its newest checkpoint
    ├── CheckpointError    a checkpoint is absent, damaged or of another run, or could not be saved
    ├── TrackingError      MLflow cannot be used, or has not accepted all results
    └── CaptioningError    captions of faces cannot be asked for or stored; the answers so far are kept
        ├── EndpointStopped    no request to the endpoint can succeed, for example because the key was revoked
        └── NoAnswer           the endpoint has not answered for one face; the next start asks again

Each message is one line that says what is wrong, where, and what to do.

The class of an error decides what the program does next. `terminal.errors_as_lines` ends a command with exit code 2
after a `ConfigError`, and with 1 after any other error of this tree. If one rank raises a `ConfigError` or
`Superseded`, `RankGroup` raises an error of the same class with the same message on all ranks.
`run_folder.attempts.FINAL` lists the classes after which a driver (the process that restarts a run) does not start the
ranks again. `PASSING`, in the same module, lists the errors of other services, such as a store that does not answer. A
later attempt may succeed after such an error.
"""


class EmocapError(Exception):
    """Base class of all errors of this package. The command line prints such an error without a traceback."""


class ConfigError(EmocapError):
    """A setting or option has a wrong value. The message names the setting, the rule that it breaks, and the remedy."""


class DataError(EmocapError):
    """Samples, captions or labels cannot be used for this run."""


class TrainingError(EmocapError):
    """Training cannot continue."""


class LostContact(TrainingError):  # noqa: N818 - not an error of this rank
    """Another rank has died or hangs, so this rank cannot continue. A new attempt can resume the run.

    This error is a consequence of the failure of another rank. So it is reported as the reason why an attempt has ended
    only if no rank has recorded another failure (`run_folder.attempts.cause`).
    """


class Superseded(TrainingError):  # noqa: N818
    """The attempt that raises this error must not write any more.

    A newer attempt of the run has taken over, or the run's folder was deleted.
    """


class RolledBack(TrainingError):  # noqa: N818
    """The loss guard has refused an update, and the run returns to its newest checkpoint.

    A driver starts the next attempt at once. When that attempt reaches the step of the refused update, it leaves the
    update out. A roll-back does not count towards the driver's limit of restarts. It has a limit of its own: the run
    ends when it would leave out more than `health.max_skips` updates.
    """


class CheckpointError(EmocapError):
    """A checkpoint is absent or damaged, does not belong to this run, or could not be saved."""


class TrackingError(EmocapError):
    """MLflow cannot be used, or has not accepted all results.

    Training raises this error only when it opens the tracker. Metrics that MLflow does not accept later wait in a queue
    (the spool) until MLflow accepts them.
    """


class CaptioningError(EmocapError):
    """Captions of faces cannot be asked for or stored. The answers so far are kept, and the same command resumes."""


class EndpointStopped(CaptioningError):  # noqa: N818
    """No further request to an endpoint can succeed, for example because the key was revoked."""


class NoAnswer(CaptioningError):  # noqa: N818
    """An endpoint has not answered for one face, or has refused the request. The next start asks for it again."""
