"""Checks the tars of `data.webdataset` before a run starts: their names, their number and their first samples."""

from emocap_shards.errors import ShardsError
from emocap_shards.inspecting.wording import counted
from emocap_shards.mask import masked_url
from emocap_shards.plan import steps_per_epoch
from emocap_shards.tar_samples import TarSamples
from emocap_shards.webdataset_stream import require_tars

from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.training.build import open_tars

LOOKED_AT = 32  # Samples that are read before a start.


def check_tars(config: Config, ranks: int | None) -> tuple[TarSamples | None, list[str]]:
    """Checks that the tars exist, that each process gets one, and that their first samples can be used.

    Args:
        config: The settings of the run.
        ranks: The number of ranks; None if it is not known yet.

    Returns:
        The samples of the tars, and notes for the user. For packed datasets these are None and an empty list.

    Raises:
        ConfigError: If the run cannot train on the tars.
    """
    settings = config.data.webdataset
    if settings is None:
        return None, []
    url, batch = masked_url(settings.url), config.global_batch
    if not steps_per_epoch(settings.samples, batch, drop_last=config.data.drop_last):
        raise ConfigError(
            f"data.webdataset.samples={settings.samples} fill no batch of global_batch={batch} with data.drop_last: "
            f"set global_batch to at most {settings.samples}, or data.drop_last=false."
        )
    try:
        tars = open_tars(config)
        if tars is None:
            return None, []
        if ranks:
            require_tars(len(tars.tars), ranks, max(1, config.data.workers))
        used, skipped = tars.usable(LOOKED_AT)
    except ShardsError as error:
        raise ConfigError(f"data.webdataset: {error}") from error
    if not used:
        why = f"the first one: {skipped[0].reason}" if skipped else "they hold none"
        raise ConfigError(f"data.webdataset: {url} has no sample that can be used, {why}.")
    limits = (
        f"data.webdataset streams {counted(len(tars.tars), 'tar')} as they are: a run that resumes within an epoch "
        "reads the epoch again in another order, no checksum is verified, and samples that cannot be used are left out "
        "and counted as data_skipped. `emocap pack` makes a dataset without these limits."
    )
    if not skipped:
        return tars, [limits]
    unusable = (
        f"data.webdataset: {len(skipped)} of the first {used + len(skipped)} samples of {url} cannot be used, the "
        f"first one because {skipped[0].reason}."
    )
    return tars, [limits, unusable]
