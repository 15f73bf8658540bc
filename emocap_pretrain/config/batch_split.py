"""The batch algebra: global_batch = ranks x micro_batch, or a refusal with the nearest one that works."""

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError


def micro_batch(config: Config, ranks: int) -> int:
    """Rows of each rank in a full step.

    Raises:
        ConfigError: If `global_batch` is not `ranks` x `micro_batch`. It is never split over several optimizer
            micro-steps: that would shrink the set of negatives without saying so.
    """
    if config.micro_batch is None:
        return _even_share(config.global_batch, ranks)
    product = ranks * config.micro_batch
    if product != config.global_batch:
        raise ConfigError(
            f"global_batch={config.global_batch} is not ranks x micro_batch = {ranks} x {config.micro_batch}; "
            f"a contrastive batch is never accumulated, so set global_batch={product}"
            f"{_or_micro(config.global_batch, ranks)}."
        )
    return config.micro_batch


def _even_share(global_batch: int, ranks: int) -> int:
    if global_batch % ranks:
        nearest = max(1, round(global_batch / ranks)) * ranks
        raise ConfigError(
            f"global_batch={global_batch} does not divide over {ranks} ranks; the nearest that does is {nearest}."
        )
    return global_batch // ranks


def _or_micro(global_batch: int, ranks: int) -> str:
    return f" or micro_batch={global_batch // ranks}" if global_batch % ranks == 0 else ""
