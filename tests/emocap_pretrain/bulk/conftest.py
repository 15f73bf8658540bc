from collections.abc import Iterator

import pytest
from pretrain_fakes import changed, forged

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.inference.model import EmotionModel

WORDS = ["a clearly happy face", "the brows are drawn together", "a neutral face", "anger, fear, joy"]


@pytest.fixture(scope="session")
def run_url(tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a run whose checkpoint of step 1 has random weights."""
    return _forged(tiny(tmp_path_factory.mktemp("bulk")))


@pytest.fixture(scope="session")
def run_without_local_url(tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a run that was trained without local sentences."""
    return _forged(changed(tiny(tmp_path_factory.mktemp("bulk")), objective={"local": 0.0}))


def _forged(config: Config) -> str:
    forged(config, Tokenizer.trained_on(WORDS, 320))
    return config.url


@pytest.fixture(scope="session")
def model(run_url: str) -> Iterator[EmotionModel]:
    return emocap.load(run_url, device="cpu")
