import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "emocap_pretrain"))  # For `pretrain_fakes`.


@pytest.fixture(autouse=True)
def surroundings() -> None:
    from pretrain_fakes import stand_alone

    stand_alone()
