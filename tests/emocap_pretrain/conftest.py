import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from emocap_shards.writer import write_shards
from hypothesis import settings
from tiny_run import tiny as tiny_settings

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.schema import Config
from emocap_pretrain.logs import OURS

# A busy machine is slow, which does not count as a failure; pytest-timeout ends what hangs.
settings.register_profile("pretrain", deadline=None)
settings.load_profile("pretrain")

FACES, PIXELS = 24, 32


@contextmanager
def _one_thread() -> Iterator[None]:
    # The tensors here are tiny: a second thread only spins.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with _one_thread():
        yield


@pytest.fixture(autouse=True)
def own_linear() -> Iterator[None]:
    """Puts back torch's `linear`, which DeepSpeed replaces at stage 3 and which `torch.jit.trace` needs afterwards."""
    before = torch.nn.functional.linear
    yield
    torch.nn.functional.linear = before


@pytest.fixture(autouse=True)
def own_log_levels() -> Iterator[None]:
    """Restores the levels of this project's loggers after each test.

    A command that a test calls in this process changes them.
    """
    loggers = [logging.getLogger(name) for name in OURS]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a packed dataset of 24 synthetic faces at 32 pixels, in four shards."""
    url = str(tmp_path_factory.mktemp("faces"))
    write_shards(records(FACES, pixels=PIXELS), url, samples_per_shard=7)
    return url


@pytest.fixture(scope="session")
def tiny(faces: str, new_mlflow: Callable[[Path], str]) -> Callable[[Path], Config]:
    """Returns a function that makes the config of a run of seconds, which writes everything into the given folder."""
    return partial(_tiny, faces, new_mlflow)


@pytest.fixture
def tiny_config(tiny: Callable[[Path], Config], tmp_path: Path) -> Config:
    """Returns the config of a run that takes seconds and writes everything into `tmp_path`."""
    return tiny(tmp_path)


@pytest.fixture(scope="session")
def finished_run(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Returns the config of a finished run of two steps with two tasks. Tests must not change its folder."""
    from pretrain_fakes import changed, finished  # Most tests need no training code.

    tasks = ["zero_shot", "retrieval"]
    with _one_thread():  # The fixture of the module begins after this one.
        return finished(changed(tiny(tmp_path_factory.mktemp("finished")), steps=2, evaluation__tasks=tasks))


def _tiny(faces: str, new_mlflow: Callable[[Path], str], tmp_path: Path) -> Config:
    tracking, artifacts = new_mlflow(tmp_path / "mlflow.db"), str(tmp_path / "artifacts")
    return Config.model_validate(
        tiny_settings(str(tmp_path / "run"), faces, tracking, artifacts, evaluation={"url": faces})
    )
