"""Lists the optimizers with settings that train the tiny model, and the ZeRO stages that support them."""

from typing import Any

from pretrain_fakes import changed

from emocap_pretrain.config.schema import Config

STAGES = {
    "adamw": (0, 1, 2, 3),
    "sgd": (0, 1, 2, 3),
    "adafactor": (0,),
    "lion": (0, 1, 2, 3),
    "lamb": (0,),
    "muon": (0,),
    "schedule_free": (0, 1, 2, 3),
}
CASES = [(name, stage) for name, stages in STAGES.items() for stage in stages]
_RATES = {
    "adamw": 1e-3,
    "sgd": 0.1,
    "adafactor": 1e-2,
    "lion": 1e-3,
    "lamb": 1e-2,
    "muon": 3e-3,
    "schedule_free": 3e-3,
}


def with_optimizer(config: Config, name: str, **settings: Any) -> Config:
    """Returns the config with another optimizer, and with its learning rate and weight decay."""
    tree: dict[str, Any] = {"name": name, "lr": _RATES[name], "warmup_steps": 1, **settings}
    if name == "sgd":
        tree.setdefault("weight_decay", 1e-3)
    if name == "schedule_free":
        tree["schedule"] = "constant"
    return changed(config, optimizer=tree)
