"""Copies what a tracker records to TensorBoard and to Weights & Biases.

MLflow stays the source of truth: it alone has the results of all attempts, the checkpoints and the rows that arrive
late. A copy is for people who already use the other tool. It gets what this attempt reports, and a copy that fails is
given up with a warning, so that it never stops training.
"""

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from emocap_shards.mask import masked

from emocap_pretrain.config.schema import TrackingConfig
from emocap_pretrain.config.stored import leaves
from emocap_pretrain.data.datasets import DatasetUse
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.tracking.spool import Row
from emocap_pretrain.tracking.tracker import RunStatus, TrackedRun, Tracker

log = logging.getLogger(__name__)


class TrackerCopy(Protocol):
    """Receives the metrics, texts and pictures of one attempt. Its methods may raise any error."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Records metrics of a step."""
        ...

    def log_text(self, name: str, content: str) -> None:
        """Records a text, whose secrets are masked already."""
        ...

    def log_picture(self, name: str, path: Path) -> None:
        """Records the image file at `path`, which is read at once."""
        ...

    def finish(self, status: RunStatus) -> None:
        """Writes what is left, and ends the copy."""
        ...


class TensorBoardCopy:
    """Writes the files of TensorBoard into a folder, with tensorboardX.

    Each attempt adds a file. TensorBoard hides points of earlier files from the step on at which this attempt begins,
    because a resumed run repeats the steps after its checkpoint.
    """

    def __init__(self, folder: Path, run: TrackedRun, *, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        # Files are named by the second of their creation. The suffix keeps those of two quick attempts apart.
        suffix = f".{os.getpid()}.{first_step}"
        self._writer = SummaryWriter(str(folder), purge_step=first_step, filename_suffix=suffix)
        lines = [f"    {name}: {masked(str(value))}" for name, value in leaves(run.params).items()]
        self._writer.add_text("config", "\n".join(lines), 0)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def log_text(self, name: str, content: str) -> None:
        self._writer.add_text(name, "\n".join(f"    {line}" for line in content.splitlines()), 0)

    def log_picture(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), 0, dataformats="HWC")

    def finish(self, status: RunStatus) -> None:  # noqa: ARG002 - the protocol's form
        self._writer.close()


class WandbCopy:
    """Records a run in Weights & Biases. `WANDB_MODE=offline` writes files that `wandb sync` uploads later.

    All attempts have one W&B run. Steps that a resumed attempt repeats are left out, as in MLflow.

    W&B's own step increases with each row and each picture, and W&B drops rows of earlier steps. Scores of a checkpoint
    come after later steps. So the step of training is a metric of its own (`AXIS`), over which all charts are drawn.
    """

    AXIS = "step"

    def __init__(self, project: str, run: TrackedRun, *, run_id: str) -> None:
        # At a terminal W&B asks for a key that is missing. Without a limit, all ranks would wait for an answer.
        os.environ.setdefault("WANDB_LOGIN_TIMEOUT", "20")
        import wandb

        self._wandb: Any = wandb
        # The console, code, the command line and the list of packages stay here: all of them may contain secrets.
        settings = wandb.Settings(
            console="off",
            save_code=False,
            disable_git=True,
            disable_code=True,
            silent=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        params = {name: masked(str(value)) for name, value in leaves(run.params).items()}
        self._run: Any = wandb.init(
            project=project, name=run.name, id=run_id, resume="allow", config=params, settings=settings
        )
        self._run.define_metric(self.AXIS, summary="max", hidden=True)
        self._run.define_metric("*", step_metric=self.AXIS)
        # The newest step of earlier attempts. A new run has no summary, and W&B offline does not know it.
        known = self._run.summary.get(self.AXIS)
        newest = known if known is None or isinstance(known, int | float) else known.get("max")
        self._newest = -1 if newest is None else int(newest)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if step > self._newest:
            self._run.log({**metrics, self.AXIS: step})

    def log_text(self, name: str, content: str) -> None:
        self._run.summary[name] = content[:10_000]

    def log_picture(self, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Image(str(path))})

    def finish(self, status: RunStatus) -> None:
        self._run.finish(exit_code=0 if status == "FINISHED" else 1)
        # W&B's own process writes the last rows. A rank ends without Python's shutdown, which would wait for it.
        self._wandb.teardown()


@dataclass(slots=True)
class CopyingTracker:
    """Passes each report to a tracker, and the metrics, texts and pictures also to copies.

    Attributes:
        main: The tracker that is the source of truth. All that is read comes from it.
        copies: The copies. One that raises an error is removed, with a warning.
    """

    main: Tracker
    copies: list[TrackerCopy]
    _last: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def run_id(self) -> str:
        return self.main.run_id

    @property
    def experiment_id(self) -> str:
        return self.main.experiment_id

    @property
    def superseded(self) -> bool:
        return self.main.superseded

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.main.log_metrics(metrics, step)
        # The rule of `Tracker`: the first value of a step is kept.
        new = {name: value for name, value in metrics.items() if step > self._last.get(name, -1)}
        self._copy_metrics(new, step)

    def log_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self.main.log_scores(metrics, step)
        new = {name: value for name, value in metrics.items() if step > self._last.get(name, -1)}
        self._copy_metrics(new, step)

    def replace_scores(self, metrics: Mapping[str, float], step: int) -> None:
        self.main.replace_scores(metrics, step)
        self._copy_metrics(metrics, step)

    def log_datasets(self, used: Sequence[DatasetUse]) -> None:
        self.main.log_datasets(used)

    def log_text(self, name: str, content: str) -> None:
        self.main.log_text(name, content)
        self._each(lambda copy: copy.log_text(name, masked(content)))

    def log_picture(self, name: str, path: Path) -> None:
        self.main.log_picture(name, path)
        self._each(lambda copy: copy.log_picture(name, path))

    def set_description(self, markdown: str) -> None:
        self.main.set_description(markdown)
        self._each(lambda copy: copy.log_text("description", masked(markdown)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.main.set_tags(tags)

    def log_checkpoint(self, url: str, step: int, digest: str) -> None:
        self.main.log_checkpoint(url, step, digest)

    def delete_checkpoints(self, steps: Collection[int]) -> None:
        self.main.delete_checkpoints(steps)

    def keep_checkpoints(self, steps: Collection[int]) -> None:
        self.main.keep_checkpoints(steps)

    def flush(self, wait_s: float) -> bool:
        return self.main.flush(wait_s)

    def unsent(self) -> list[Row]:
        return self.main.unsent()

    def finish(self, status: RunStatus) -> None:
        self.main.finish(status)
        self._each(lambda copy: copy.finish(status))

    def _copy_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        if metrics:
            self._last |= dict.fromkeys(metrics, step)
            self._each(lambda copy: copy.log_metrics(metrics, step))

    def _each(self, act: Callable[[TrackerCopy], None]) -> None:
        for copy in list(self.copies):
            try:
                act(copy)
            except Exception as error:  # noqa: BLE001 - training continues after any error of another tool
                self.copies.remove(copy)
                _warn(type(copy).__name__, error)


def with_copies(main: Tracker, run: TrackedRun, *, first_step: int) -> Tracker:
    """Returns a tracker that also records in the tools that the settings name; `main` itself if they name none.

    A tool that cannot be used is left out with a warning.

    Args:
        main: The tracker that is the source of truth.
        run: The name, the settings and the params of the run.
        first_step: The first step that this attempt reports: 0, or the one after the checkpoint from which it resumes.
    """
    settings = run.settings
    makers: list[tuple[str, Callable[[], TrackerCopy]]] = []
    if settings.tensorboard is not None:
        # The id makes the folder that of this run, also if two runs have the same name.
        folder = Path(settings.tensorboard) / f"{run.name}-{main.run_id[:8]}"
        makers.append(("TensorBoard", lambda: TensorBoardCopy(folder, run, first_step=first_step)))
    if settings.wandb is not None:
        project = settings.wandb
        makers.append(("W&B", lambda: WandbCopy(project, run, run_id=main.run_id)))
    copies: list[TrackerCopy] = []
    for name, make in makers:
        try:
            copies.append(make())
        except Exception as error:  # noqa: BLE001 - the run is tracked in MLflow in any case
            _warn(name, error)
    return CopyingTracker(main, copies) if copies else main


def check_copies(settings: TrackingConfig) -> None:
    """Checks that the tools which the settings name can be used, before a run starts. No server is asked.

    Raises:
        ConfigError: If a package or the key of W&B is missing, or `tracking.tensorboard` is not a local folder.
    """
    if settings.wandb is not None:
        if find_spec("wandb") is None:
            raise ConfigError(
                "tracking.wandb: the package wandb is not installed: pip install 'emocap-pretrain[wandb]'."
            )
        if not _has_wandb_key(os.environ):
            raise ConfigError(
                "tracking.wandb: there is no key of W&B: set WANDB_API_KEY, type `wandb login`, or set "
                "WANDB_MODE=offline."
            )
    if settings.tensorboard is not None and "://" in settings.tensorboard:
        raise ConfigError(f"tracking.tensorboard={masked(settings.tensorboard)}: give a folder that this host has.")


def _has_wandb_key(variables: Mapping[str, str]) -> bool:
    """Returns whether W&B needs no key, or has a key in a variable or in a file of `wandb login` (a netrc file)."""
    if variables.get("WANDB_MODE", "online").lower() in {"offline", "disabled", "dryrun"}:
        return True
    if any(variables.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    files = (variables.get("NETRC", "~/.netrc"), "~/_netrc")
    return any(Path(each).expanduser().is_file() for each in files)


def _warn(name: str, error: Exception) -> None:
    line = masked(str(error)).strip().split("\n")[0][:200] or type(error).__name__
    log.warning("%s cannot be used any more (%s); the run is recorded in MLflow", name, line)
