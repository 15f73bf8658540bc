"""A trained model from a run's checkpoint, by safetensors alone."""

from dataclasses import dataclass

from emocap_shards.store import open_store
from safetensors.torch import load_file

from emocap_pretrain.checkpoint.layout import TOKENIZER, WEIGHTS
from emocap_pretrain.checkpoint.loader import downloaded
from emocap_pretrain.checkpoint.manifest import committed
from emocap_pretrain.config.load import from_stored
from emocap_pretrain.config.schema import Config
from emocap_pretrain.encoders.pair import TowerPair
from emocap_pretrain.errors import CheckpointError
from emocap_pretrain.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Restored:
    """A model in evaluation mode with what belongs to it."""

    config: Config
    model: TowerPair
    tokenizer: Tokenizer
    step: int


def restore(run_url: str, *, step: int | None = None, device: str = "cpu") -> Restored:
    """Load a checkpoint of a run.

    Args:
        run_url: The run's `url`.
        step: Which; default the newest.
        device: Where the model shall live.

    Raises:
        CheckpointError: If there is none, or its files are not what its manifest says.
    """
    store = open_store(run_url)
    found = {each.step: each for each in committed(store)}
    wanted = max(found, default=-1) if step is None else step
    if wanted not in found:
        steps = ", ".join(map(str, sorted(found))) or "none"
        raise CheckpointError(
            f"{run_url} has no checkpoint{'' if step is None else f' of step {step}'}; steps: {steps}."
        )
    small = (WEIGHTS, TOKENIZER)
    with downloaded(store, found[wanted], small.__contains__) as folder:
        config = from_stored(found[wanted].state["config"])
        tokenizer = Tokenizer.from_json((folder / TOKENIZER).read_text(encoding="utf-8"))
        model = TowerPair(config, tokenizer.vocabulary, weights=False)
        model.load_state_dict(load_file(folder / WEIGHTS))
    return Restored(config, model.to(device).eval(), tokenizer, wanted)
