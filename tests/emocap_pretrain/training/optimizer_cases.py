"""Lists the optimizers with settings that train the tiny model, and the ZeRO stages that support them."""

from typing import Any

from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config

STAGES = {"adamw": (0, 1, 2, 3), "sgd": (0, 1, 2, 3), "adafactor": (0,)}
CASES = [(name, stage) for name, stages in STAGES.items() for stage in stages]
_RATES = {"adamw": 1e-3, "sgd": 0.1, "adafactor": 1e-2}


def with_optimizer(config: Config, name: str, **settings: Any) -> Config:
    """Returns the config with another optimizer, and with its learning rate and weight decay."""
    tree: dict[str, Any] = {"name": name, "lr": _RATES[name], "warmup_steps": 1, **settings}
    if name == "sgd":
        tree.setdefault("weight_decay", 1e-3)
    return changed(config, optimizer=tree)
