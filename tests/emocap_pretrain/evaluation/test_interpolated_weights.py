from typing import Any

from emocap_pretrain.evaluation.other_weights import curve
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank


def test_without_shares_no_weights_are_copied() -> None:
    """Every evaluation calls the function, also that of a model whose copy would not fit into the memory."""
    no_model: Any = None
    assert curve(no_model, {}, (), RankGroup(Rank(), "cpu", None)) == ()
