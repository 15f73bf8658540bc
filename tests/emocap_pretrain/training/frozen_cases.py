"""Lists configs of models that are partly frozen, for tests of training."""

from typing import Any

from engine_batches import VOCABULARY
from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config
from emocap_pretrain.training.build import build_model

_SCALES = ["logit_scale", "local_logit_scale"]
_PROJECTIONS = ["to_image", "to_patch", "to_text", "to_sentence"]
# Locked-image tuning, a few blocks of both towers, projections on top of frozen towers, and adapters of both towers.
CASES: dict[str, dict[str, Any]] = {
    "image": {"model__image__freeze": "all"},
    "blocks": {"model__image__freeze": 1, "model__text__freeze": 0},
    "adapters": {"model__image__lora": {"rank": 2}, "model__text__lora": {"rank": 3, "alpha": 30}},
    "towers": {"model__image__freeze": "all", "model__text__freeze": "all", "model__freeze": _SCALES},
}
_NOTHING = {"model__image__freeze": "all", "model__text__freeze": "all", "model__freeze": [*_SCALES, *_PROJECTIONS]}


def frozen_config(config: Config, case: str) -> Config:
    """Returns the config with an image tower of two blocks, and with the parts frozen that `CASES` gives for `case`.

    With the case "nothing", no part of the model is trained.
    """
    options = {**config.model.image.options, "depth": 2}
    changes = CASES.get(case, _NOTHING)
    return changed(config, model__image__options=options, global_batch=9, **changes)


def frozen_names(config: Config) -> set[str]:
    """Returns the names of the frozen parameters of the model of this config, as a checkpoint has them."""
    weights = build_model(config, VOCABULARY).state_dict(keep_vars=True)
    return {name for name, each in weights.items() if not each.requires_grad}
