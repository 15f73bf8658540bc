"""Reads the classes by which the samples of a run are balanced (`data.balance`), and describes what follows from them.

A sample without the label belongs to no class, and a balanced run could not draw it. So such a sample is refused, and
so is a label that is not one of classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.inspecting.label_values import label_column, label_values
from emocap_shards.inspecting.wording import counted
from emocap_shards.mask import masked_url
from emocap_shards.strata import MOST_CLASSES, ClassBalance, class_shares
from jaxtyping import UInt8

from emocap_pretrain.config.data import BalanceConfig, DataConfig
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.data.datasets import Filters, filter_at
from emocap_pretrain.errors import ConfigError

EXPONENTS = {"inverse": 1.0, "inverse_sqrt": 0.5}
_SHOWN = 12  # Number of names that a message lists.


def read_balance(data: DataConfig, filters: Filters = ()) -> ClassBalance | None:
    """Reads the class of every sample that is used, or returns None without `data.balance`.

    One process calls it at a start.

    Raises:
        ConfigError: If a sample has no label, or the label has too many values or only one.
        ShardsError: If a dataset cannot be read.
    """
    if data.balance is None:
        return None
    classes = tuple(
        _classes(data.balance, each.url, filter_at(filters, place)) if each.balance else None
        for place, each in enumerate(data.datasets)
    )
    return ClassBalance(classes, EXPONENTS[data.balance.weights])


def check_balance(
    data: DataConfig, *, global_batch: int, seconds: float | None = None, filters: Filters = ()
) -> list[str]:
    """Checks the labels of the datasets that are balanced, before anything starts.

    Args:
        data: The datasets.
        global_batch: Number of samples of a step.
        seconds: Reading of each dataset stops after this time; None reads everything.
        filters: The filters of the datasets (`open_filters`).

    Returns:
        One line for each dataset whose labels were all read: the share of each class in a batch, and how often each of
        its samples is drawn while as many samples are drawn as the dataset has.

    Raises:
        ConfigError, ShardsError: As `read_balance`, if the samples that were read show it.
    """
    if data.balance is None:
        return []
    notes: list[str] = []
    for place, dataset in enumerate(data.datasets):
        if not dataset.balance:
            continue
        filter_ = filter_at(filters, place)
        found = label_values(dataset.url, data.balance.label, seconds=seconds, filter_=filter_)
        counts = _counts(found.values)
        missing = found.looked - sum(counts.values())
        _require_classes(data.balance, dataset.url, counts, missing, found.looked, found.names)
        if found.complete:
            if len(counts) == 1:
                raise _only_one(data.balance, dataset.url)
            notes.append(_note(data.balance, dataset.url, counts, global_batch if not data.mix else None))
    return notes


def _classes(balance: BalanceConfig, url: str, filter_: DatasetFilter | None) -> UInt8[np.ndarray, " samples"]:
    found = label_column(url, balance.label, most_values=2 * MOST_CLASSES, filter_=filter_)
    if found is None:
        raise _too_many(balance, url)
    # The values 0, 0.0 and "0" are one class. Classes are numbered by name, whatever the order of the samples is.
    names = sorted({label_text(value) for value in found.values})
    numbers = np.array([names.index(label_text(value)) for value in found.values], dtype=np.int64)
    missing = int((found.codes < 0).sum())
    counts = dict.fromkeys(names, 1)
    _require_classes(balance, url, counts, missing, len(found.codes), ())
    if len(names) == 1:
        raise _only_one(balance, url)
    return numbers[found.codes].astype(np.uint8)


def _counts(values: Mapping[str | float, int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for value, count in values.items():
        counts[label_text(value)] = counts.get(label_text(value), 0) + count
    return dict(sorted(counts.items()))


def _require_classes(
    balance: BalanceConfig, url: str, counts: Mapping[str, int], missing: int, looked: int, names: Sequence[str]
) -> None:
    if len(counts) > MOST_CLASSES:
        raise _too_many(balance, url)
    if missing:
        others = f"; they have the labels {', '.join(names[:_SHOWN])}" if names and not counts else ""
        raise ConfigError(
            f"data.balance: {missing:,} of {counted(looked, 'sample')} of {masked_url(url)} have no label "
            f"{balance.label}{others}: pack the dataset without them, choose another label, or write balance: false "
            "beside the dataset in data.mix."
        )


def _too_many(balance: BalanceConfig, url: str) -> ConfigError:
    return ConfigError(
        f"data.balance: the label {balance.label} of {masked_url(url)} has more than {MOST_CLASSES} values, so it is "
        "not one of classes: choose another label."
    )


def _only_one(balance: BalanceConfig, url: str) -> ConfigError:
    return ConfigError(
        f"data.balance: all samples of {masked_url(url)} have the same {balance.label}: leave data.balance out, or "
        "write balance: false beside the dataset in data.mix."
    )


def _note(balance: BalanceConfig, url: str, counts: Mapping[str, int], global_batch: int | None) -> str:
    total = sum(counts.values())
    shares = class_shares(list(counts.values()), EXPONENTS[balance.weights]).tolist()
    rows = list(zip(counts.items(), shares, strict=True))
    # The classes whose samples are repeated most come first.
    rows.sort(key=lambda row: row[0][1])
    texts = [
        f"{name[:40]} {share:.1%} (each of its {counted(count, 'sample')} {share * total / count:.3g} times)"
        for (name, count), share in rows[:_SHOWN]
    ]
    more = f", and {len(rows) - _SHOWN} more classes" if len(rows) > _SHOWN else ""
    line = f"data.balance draws from {masked_url(url)} in an epoch: {', '.join(texts)}{more}."
    twice = [name for (name, count), share in rows if global_batch and share * global_batch > count]
    if twice:
        line += f" A batch contains images of {', '.join(twice[:_SHOWN])} more than once."
    return line
