import pytest
from pretrain_fakes import forged

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.inference.model import EmotionModel

WORDS = ["a clearly happy face", "the brows are drawn together", "a neutral face", "anger, fear, joy"]


@pytest.fixture
def run(tiny_config: Config) -> Config:
    """Returns the config of a run whose checkpoint of step 1 has random weights."""
    forged(tiny_config, Tokenizer.trained_on(WORDS, 320))
    return tiny_config


@pytest.fixture
def model(run: Config) -> EmotionModel:
    return emocap.load(run.url, device="cpu")
