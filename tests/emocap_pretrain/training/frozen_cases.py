"""Lists models of which a part is frozen, for tests of training."""

from typing import Any

from engine_batches import VOCABULARY
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.training.build import build_model

_SCALES = ["logit_scale", "local_logit_scale"]
_PROJECTIONS = ["to_image", "to_patch", "to_text", "to_sentence"]
# Locked-image tuning, a few blocks of both towers, and projections on top of towers that are both frozen.
CASES: dict[str, dict[str, Any]] = {
    "image": {"model__image__freeze": "all"},
    "blocks": {"model__image__freeze": 1, "model__text__freeze": 0},
    "towers": {"model__image__freeze": "all", "model__text__freeze": "all", "model__freeze": _SCALES},
}
_NOTHING = {"model__image__freeze": "all", "model__text__freeze": "all", "model__freeze": [*_SCALES, *_PROJECTIONS]}


def frozen_config(config: Config, case: str) -> Config:
    """Returns the config with an image tower of two blocks, and with the frozen parts of a case of `CASES`.

    The case "nothing" trains nothing.
    """
    options = {**config.model.image.options, "depth": 2}
    changes = CASES.get(case, _NOTHING)
    return changed(config, model__image__options=options, global_batch=9, **changes)


def frozen_names(config: Config) -> set[str]:
    """Returns the names of the parameters that the model of this config does not train."""
    return {name for name, each in build_model(config, VOCABULARY).named_parameters() if not each.requires_grad}
