"""Lists for `--dry-run` which parts of the model are trained, and with which learning rate and weight decay."""

from collections.abc import Iterable, Iterator

from torch import nn

from emocap_pretrain.config.optimizer import OptimizerConfig
from emocap_pretrain.training.optimizer import ParameterGroup, parameter_groups

_KINDS: tuple[str, ...] = ("image tower", "text tower", "projections", "scales", "head")
_MOST_RATES = 3


def trained_rows(model: nn.Module, settings: OptimizerConfig) -> list[tuple[str, str]]:
    """Returns the rows that `--dry-run` prints, each as a name and a text: one row for each kind of part.

    The learning rates are those at the end of the warm-up. With `optimizer.layer_decay` they differ between the layers
    of a tower. Weight decay applies to matrices only.

    Raises:
        ConfigError: As in `parameter_groups`.
    """
    groups = parameter_groups(model, settings)
    sizes = dict.fromkeys(_KINDS, 0)
    for name, parameter in model.named_parameters():
        sizes[_kind(name)] += parameter.numel()
    lines = [f"{kind}: {_described(kind, whole, groups, settings.lr)}" for kind, whole in sizes.items() if whole]
    return [("" if number else "trained", line) for number, line in enumerate(lines)]


def _kind(name: str) -> str:
    part = name.partition(".")[0]
    if part in {"image", "text"}:
        return f"{part} tower"
    return part if part == "head" else "projections" if part.startswith("to_") else "scales"


def _described(kind: str, whole: int, groups: Iterable[ParameterGroup], lr: float) -> str:
    mine = [(group, size) for group in groups if (size := _size(group, kind))]
    trained = sum(size for _, size in mine)
    if not trained:
        return f"frozen, {_count(whole)} parameters"
    rates = sorted({lr * group.lr_scale for group, _ in mine})
    decays = sorted({group.weight_decay for group, _ in mine if group.weight_decay})
    return ", ".join(_facts(trained, whole, rates, decays))


def _facts(trained: int, whole: int, rates: list[float], decays: list[float]) -> Iterator[str]:
    yield f"{_count(trained)} parameters"
    few = len(rates) <= _MOST_RATES
    yield "lr " + (" and ".join(f"{rate:.3g}" for rate in rates) if few else f"{rates[0]:.3g} to {rates[-1]:.3g}")
    for decay in decays:
        yield f"decay {decay:g}"
    if trained < whole:
        yield f"{_count(whole - trained)} frozen"


def _size(group: ParameterGroup, kind: str) -> int:
    return sum(each.numel() for name, each in group.parameters.items() if _kind(name) == kind)


def _count(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"
