from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from emocap_shards.writer import write_shards
from hypothesis import settings

from emocap_pretrain.captions.rendered.dataset import records
from emocap_pretrain.config.schema import Config

# A busy machine is slow, which does not count as a failure; pytest-timeout ends what hangs.
settings.register_profile("pretrain", deadline=None)
settings.load_profile("pretrain")

FACES, PIXELS = 24, 32


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    # The tensors here are tiny: a second thread only spins.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A packed dataset of 24 synthetic faces at 32 pixels, in four shards."""
    url = str(tmp_path_factory.mktemp("faces"))
    write_shards(records(FACES, pixels=PIXELS), url, samples_per_shard=7)
    return url


@pytest.fixture(scope="session")
def tiny(faces: str) -> Callable[[Path], Config]:
    """Gives a run of seconds; everything that it writes comes to lie in the folder."""
    return partial(_tiny, faces)


@pytest.fixture
def tiny_config(tiny: Callable[[Path], Config], tmp_path: Path) -> Config:
    """A run of seconds; everything that it writes comes to lie in `tmp_path`."""
    return tiny(tmp_path)


def _tiny(faces: str, tmp_path: Path) -> Config:
    return Config.model_validate(
        {
            "name": "tiny",
            "url": str(tmp_path / "run"),
            "steps": 4,
            "global_batch": 8,
            "data": {"url": faces, "workers": 0, "shuffle_window": 12},
            "model": {
                "embedding": 16,
                "image": {
                    "name": "vit_tiny_patch16_224",
                    "pixels": 16,
                    "options": {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2},
                },
                "text": {
                    "architecture": {"width": 32, "layers": 1, "heads": 2},
                    "vocabulary": 320,
                    "lengths": {"global": 16, "local": 16, "summary": 24},
                },
            },
            "optimizer": {"lr": 1e-3, "warmup_steps": 1},
            "cluster": {"ranks": 1, "device": "cpu", "threads_per_rank": 1},
            "checkpoint": {"every_steps": 2},
            "tracking": {
                "uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
                "artifacts": str(tmp_path / "artifacts"),
                "every_steps": 1,
            },
            "evaluation": {"url": faces},
        }
    )
