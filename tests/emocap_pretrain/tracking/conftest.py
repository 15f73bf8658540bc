from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with one database for all tests, because the creation of a database takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def config(tiny_config: Config, folder: Path) -> Config:
    return changed(
        tiny_config,
        tracking__uri=f"sqlite:///{folder / 'deep' / 'mlflow.db'}",
        tracking__artifacts=str(folder / "artifacts"),
        tracking__experiment="faces",
    )


@pytest.fixture
def client(config: Config) -> MlflowClient:
    return MlflowClient(config.tracking.uri)
