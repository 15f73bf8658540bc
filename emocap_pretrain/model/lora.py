"""Adds LoRA adapters to the linear layers of a tower with peft, and merges them into the weights of these layers.

LoRA (Hu et al. 2022) freezes a weight W [d, k], and trains a matrix A [r, k] and a matrix B [d, r], so that the layer
computes W x + (alpha / r) B A x. B begins at zero, so the tower at first computes the same as without adapters.

peft replaces a linear layer by a module that contains the layer as `base_layer`. Hooks hide this in the state dict: the
weights of the layer keep their names, and those of the adapter are added as `lora_A.default.weight` and
`lora_B.default.weight`. So a checkpoint has all names of the tower without adapters, and the names of the adapters.

peft is imported inside of functions, because the import takes a second and most runs have no adapters.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from emocap_pretrain.config.model import LoraConfig
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.model.weights import listed

# Names of the linear layers of attentions and MLPs in timm and transformers. By default, a layer whose name ends in one
# of these gets an adapter.
_TARGETS = (
    *("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.fc1_g", "mlp.fc1_x", "mlp.w1", "mlp.w2", "mlp.w3"),
    *("q_proj", "k_proj", "v_proj", "out_proj"),
    *("query", "key", "value", "dense", "ffn", "ffn_output"),
    *("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"),
    *("query_proj", "key_proj", "value_proj", "attn.q", "attn.k", "attn.v", "attn.o", "Wqkv", "Wo", "Wi"),
)


def add_adapters(tower: nn.Module, settings: LoraConfig | None, key: str) -> None:
    """Adds adapters to the linear layers that the settings name, and freezes all other parameters of the tower.

    The values of A are drawn from torch's global generator. Nothing happens if `settings` is None.

    Args:
        tower: The tower. Its modules are replaced in place.
        settings: The size of the adapters, and the layers that get one.
        key: The dotted key of the settings, for messages.

    Raises:
        ConfigError: If a target of the settings matches no layer, or if there are no targets in the settings and no
            layer has one of the usual names.
    """
    if settings is None:
        return
    import peft

    layers = {name for name, layer in tower.named_modules() if isinstance(layer, nn.Linear) and _is_called(tower, name)}
    chosen = _chosen(layers, settings, key)
    adapters = peft.LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=chosen, bias="none"
    )
    peft.inject_adapter_in_model(adapters, tower)
    for name in chosen:
        layer = tower.get_submodule(name)
        layer.register_state_dict_post_hook(_hide_base_layer)
        layer.register_load_state_dict_pre_hook(_find_base_layer)


def is_of_adapter(name: str) -> bool:
    """Returns whether the parameter of this name belongs to an adapter."""
    return ".lora_" in name


def merge_adapters(model: nn.Module) -> None:
    """Adds (alpha / r) B A to the weights of each adapted layer, and removes the adapters.

    Afterwards the model has the modules and names of a model without adapters, and computes the same vectors as before,
    up to rounding. Its weights must not be sharded by ZeRO stage 3.
    """
    from peft.tuners.lora import LoraLayer

    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            merged: Any = layer
            merged.merge()
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, merged.get_base_layer())


def _is_called(tower: nn.Module, name: str) -> bool:
    """Returns whether the result of the tower depends on a call of this linear layer.

    An adapter takes effect only if its layer is called. timm's attentions with a `q_bias` (BEiT, Swin 2) and torch's
    `MultiheadAttention` read the weights of their layers and do not call them. The pooler of an encoder of transformers
    is called, but its result is not used.
    """
    parent, _, child = name.rpartition(".")
    attention = tower.get_submodule(parent)
    reads_weights = isinstance(attention, nn.MultiheadAttention) or (
        child == "qkv" and getattr(attention, "q_bias", None) is not None
    )
    return not reads_weights and "pooler" not in name.split(".")


def _chosen(layers: Iterable[str], settings: LoraConfig, key: str) -> list[str]:
    """Returns the names of the layers that get an adapter, sorted, so that the order is the same on all ranks."""
    ordered = sorted(layers)
    for target in settings.targets or ():
        if not any(_ends_in(name, target) for name in ordered):
            raise ConfigError(f"{key}.targets: no linear layer of the tower ends in {target!r}; {_known(ordered, key)}")
    targets = settings.targets or _TARGETS
    found = [name for name in ordered if any(_ends_in(name, target) for target in targets)]
    if not found:
        raise ConfigError(f"{key}: the tower has no linear layer of attention or of an MLP; {_known(ordered, key)}")
    return found


def _known(layers: Iterable[str], key: str) -> str:
    """Returns advice for an error message: the ends of the layers' names, or `freeze` if there are no linear layers."""
    ends = dict.fromkeys(".".join(_without_numbers(name)) for name in layers)
    return f"its layers end in {listed(ends)}." if ends else f"set {key.removesuffix('lora')}freeze instead."


def _without_numbers(name: str) -> Iterator[str]:
    parts = name.split(".")
    last = max((place for place, part in enumerate(parts) if part.isdecimal()), default=-1)
    yield from parts[last + 1 :] or parts[-1:]


def _ends_in(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _hide_base_layer(_layer: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    for name in ("weight", "bias"):
        if f"{prefix}base_layer.{name}" in state:
            state[f"{prefix}{name}"] = state.pop(f"{prefix}base_layer.{name}")


def _find_base_layer(_layer: nn.Module, state: dict[str, Any], prefix: str, *_others: Any) -> None:
    for name in ("weight", "bias"):
        if f"{prefix}{name}" in state:
            state[f"{prefix}base_layer.{name}"] = state.pop(f"{prefix}{name}")
