from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests: making one takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture
def config(tiny_config: Config, place: Path) -> Config:
    return changed(
        tiny_config,
        tracking__uri=f"sqlite:///{place / 'deep' / 'mlflow.db'}",
        tracking__artifacts=str(place / "artifacts"),
        tracking__experiment="faces",
    )


@pytest.fixture
def client(config: Config) -> MlflowClient:
    return MlflowClient(config.tracking.uri)
