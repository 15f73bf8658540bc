from collections.abc import Callable
from pathlib import Path

import pytest
from generation_fakes import write_llama
from pretrain_fakes import forged, stand_alone

import emocap_pretrain as emocap
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.generation.language_model import LanguageModel, load_language_model
from emocap_pretrain.generation.patches import PatchFiles, PatchSettings, computed_patches
from emocap_pretrain.inference.embedder import Embedder

WORDS = ["a clearly happy face", "the brows are drawn together", "a neutral face", "anger, fear, joy"]


@pytest.fixture(scope="session", autouse=True)
def _process_group() -> None:
    """Makes the process group that the engine needs, once, because DeepSpeed keeps it."""
    stand_alone()


@pytest.fixture(scope="session")
def run_url(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Returns the folder of a run that was not trained: its checkpoint has random weights."""
    config = tiny(tmp_path_factory.mktemp("generation"))
    forged(config, Tokenizer.trained_on(WORDS, 320))
    return config.url


@pytest.fixture(scope="session")
def embedder(run_url: str) -> Embedder:
    return emocap.load(run_url, device="cpu").embedder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a tiny Llama with random weights, in the layout of transformers."""
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


@pytest.fixture(scope="session")
def language(llama: Path) -> LanguageModel:
    return load_language_model(str(llama))


@pytest.fixture(scope="session")
def patches(embedder: Embedder, faces: str, tmp_path_factory: pytest.TempPathFactory) -> PatchFiles:
    """Returns the patch vectors of the 24 faces, four for each face, with the global captions of the faces."""
    return computed_patches(embedder, faces, PatchSettings(image_tokens=4), tmp_path_factory.mktemp("patches"))
