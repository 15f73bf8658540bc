"""Reads the labels that a head predicts: as tensors of a batch, and as the number of training samples of each class.

A sample without a label, or with an empty one, has no target: the class -1 or the number NaN. It adds nothing to the
loss of this label. A value that the settings do not allow ends the run, because nobody would notice if it were ignored.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from emocap_shards.inspecting.label_values import LabelValues, label_values
from emocap_shards.manifest import read_manifest
from emocap_shards.mask import masked_url
from emocap_shards.sample import Sample
from jaxtyping import Float32, Int64
from torch import Tensor

from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.objective import LabelConfig
from emocap_pretrain.data.datasets import Filters, filter_at, used_samples
from emocap_pretrain.errors import ConfigError, DataError

MISSING_CLASS = -1
_SHOWN = 12  # Number of names that an error message lists.


def label_targets(
    settings: LabelConfig, samples: Sequence[Sample]
) -> Int64[Tensor, " samples"] | Float32[Tensor, " samples"]:
    """Returns the target of each sample for one label.

    If the label has classes, a target is the index of the class, or -1 for a sample without the label. Otherwise it is
    the number, or NaN for a sample without the label.

    Raises:
        DataError: If a sample has a value that is none of the classes, or a text in a label without classes.
    """
    values = [sample.labels.get(settings.name, "") for sample in samples]
    places = {name: place for place, name in enumerate(settings.classes or ())}
    for sample, value in zip(samples, values, strict=True):
        if not _is_allowed(value, places):
            raise DataError(f"sample {sample.key}: {_complaint(settings, value)}.")
    if settings.classes:
        found = [MISSING_CLASS if value == "" else places[label_text(value)] for value in values]
        return torch.tensor(found, dtype=torch.int64)
    return torch.tensor([math.nan if value == "" else float(value) for value in values], dtype=torch.float32)


def check_labels(
    data: DataConfig, labels: Sequence[LabelConfig], *, seconds: float | None = None, filters: Filters = ()
) -> list[str]:
    """Compares the labels of the training datasets with the settings. One process calls it, before training.

    Args:
        data: The datasets.
        labels: The labels that a head predicts.
        seconds: Reading of each dataset and label stops after this time; None reads everything.
        filters: The filters of the datasets (`open_filters`).

    Returns:
        Notes for the user: one line for each dataset and label that some samples lack, with the number of samples.

    Raises:
        ConfigError: If a label has a value that the settings do not allow, or if everything was read and no sample has
            the label.
        ShardsError: If a dataset cannot be read.
    """
    notes: list[str] = []
    for label in labels:
        found = {
            dataset.url: label_values(dataset.url, label.name, seconds=seconds, filter_=filter_at(filters, place))
            for place, dataset in enumerate(data.datasets)
        }
        for url, values in found.items():
            _require_allowed(label, url, values)
            missing = values.looked - sum(values.values.values())
            if missing:
                notes.append(
                    f"objective.labels: {missing:,} of {values.looked:,} samples of {masked_url(url)} have no label "
                    f"{label.name}; they add nothing to its loss."
                )
        if all(values.complete for values in found.values()):
            _require_some(label, found)
    return notes


def count_classes(
    data: DataConfig, labels: Sequence[LabelConfig], filters: Filters = ()
) -> dict[str, tuple[float, ...]]:
    """Counts the training samples of each class, for the labels whose classes are balanced.

    The annotations of all samples that are used are read. In a mixture of datasets, a sample counts as often as it is
    drawn in comparison with an average sample, so the counts may not be whole numbers.

    Returns:
        The counts by the name of the label, in the order of its classes; empty if no label is balanced.

    Raises:
        ConfigError: If a class has no sample, or a sample has a value of the label that is none of its classes.
        ShardsError: If a dataset cannot be read.
    """
    return {label.name: _counts(data, label, filters) for label in labels if label.balance != "none"}


def _counts(data: DataConfig, label: LabelConfig, filters: Filters) -> tuple[float, ...]:
    sizes = used_samples([read_manifest(dataset.url) for dataset in data.datasets], filters)
    weights = [dataset.weight or size for dataset, size in zip(data.datasets, sizes, strict=True)]
    totals = dict.fromkeys(label.classes or (), 0.0)
    for place, (dataset, size, weight) in enumerate(zip(data.datasets, sizes, weights, strict=True)):
        found = label_values(dataset.url, label.name, filter_=filter_at(filters, place))
        _require_allowed(label, dataset.url, found)
        # A dataset alone has the factor 1.0, so its counts are whole numbers.
        often = (weight / sum(weights)) / (size / sum(sizes))
        for value, count in found.values.items():
            totals[label_text(value)] += often * count
    if empty := [name for name, count in totals.items() if not count]:
        raise ConfigError(
            f"objective.labels: no training sample has the class {_listed(empty)} of the label {label.name}, so the "
            "class cannot be balanced: leave it out of classes, or set balance to none."
        )
    return tuple(totals.values())


def _require_allowed(label: LabelConfig, url: str, found: LabelValues) -> None:
    places = {name: place for place, name in enumerate(label.classes or ())}
    for value, count in found.values.items():
        if not _is_allowed(value, places):
            raise ConfigError(f"objective.labels: {count:,} samples of {masked_url(url)}: {_complaint(label, value)}.")


def _require_some(label: LabelConfig, found: Mapping[str, LabelValues]) -> None:
    if not any(values.values for values in found.values()):
        names = sorted({name for values in found.values() for name in values.names})
        there = f"they have {_listed(names)}" if names else "they have no labels"
        raise ConfigError(f"objective.labels: no training sample has the label {label.name}; {there}.")


def _is_allowed(value: str | float, places: Mapping[str, int]) -> bool:
    if value == "":
        return True
    return label_text(value) in places if places else not isinstance(value, str)


def _complaint(label: LabelConfig, value: str | float) -> str:
    is_wrong = f"the label {label.name} is {str(value)[:40]!r}"
    if label.classes:
        return f"{is_wrong}, which is none of the classes {_listed(label.classes)}"
    return f"{is_wrong}, which is not a number; give the label classes if its values are names"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:40] for name in names[:_SHOWN]) + more
