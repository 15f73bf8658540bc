"""Divides the samples of datasets into strata, each of which is drawn in an order of its own.

Without balancing, each dataset is one stratum. If a dataset is balanced by a label, each class of the label is a
stratum. Samples that the filter of a dataset leaves out are in no stratum (decision 47). A mixture of strata in fixed
shares (`mixture`) is then a balanced sample: each class has its share of every batch, and all samples of a class are
used once before one is used again. The strata are a pure function of the filters and of the classes of the samples. So
the position in the stream needs no further state, and depends on no rank (decision 45).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32, Int64, UInt8

from emocap_shards.dataset_filter import DatasetFilter
from emocap_shards.errors import PlanError
from emocap_shards.order import Ids, Order, ShardLayout

MOST_CLASSES = 256


@dataclass(frozen=True, slots=True, eq=False)
class ClassBalance:
    """Holds the classes of the samples of a stream, and how strongly they are balanced, as a picklable value.

    Args:
        classes: For each dataset the class of every sample that is used, in the order of the manifest; None for a
            dataset that is drawn as it is.
        exponent: A class of a dataset with n samples gets a share in proportion to n^(1 - exponent), so the weight of
            a sample is n^-exponent. With 1 all classes have equal shares, with 0.5 the weight is the inverse of the
            square root of the frequency, and with 0 nothing is balanced.
    """

    classes: tuple[UInt8[np.ndarray, " samples"] | None, ...]
    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 1:
            raise PlanError(f"exponent={self.exponent} of the frequency of a class must be 0 to 1.")


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """Samples of one dataset that are drawn in an order of their own: all that are used, or those of one class.

    Attributes:
        dataset: Index of the dataset.
        layout: How the samples of the stratum are distributed over the shards of the dataset.
        members: The ids of the samples, which count the samples of the dataset, in ascending order; None for all. They
            have 32 bits if that is enough, because each loader process holds them.
        number: 0 for all samples that are used; otherwise the class and 1.
        share: Share of the samples that are drawn from the dataset, in (0, 1].
    """

    dataset: int
    layout: ShardLayout
    members: Int32[np.ndarray, " samples"] | Ids | None = None
    number: int = 0
    share: float = 1.0

    @property
    def samples(self) -> int:
        """Returns the number of samples."""
        return self.layout.samples

    def window_samples(self, window_samples: int) -> int:
        """Returns the size of a window of this stratum, if a window of its dataset has `window_samples` samples.

        It is in proportion to the share, so a window lasts as many steps as one of the dataset.
        """
        return max(1, round(window_samples * self.share))

    def order(self, seed: int, epoch: int, window_samples: int, *, shuffle: bool) -> Order:
        """Returns the order of one pass over the samples. The order counts the samples of the stratum."""
        # The first dataset has the order of the seed itself, so that it is the same alone and in a mixture. The others,
        # and classes, have seeds beyond 64 bits, which `SeedSequence` accepts.
        own = seed + (self.dataset << 64) + (self.number << 96)
        return Order(self.layout, own, epoch, self.window_samples(window_samples), shuffle)

    def ids(self, order: Order, start: int, stop: int) -> Ids:
        """Returns the samples at positions [start, stop) of an order; the ids count the samples of the dataset."""
        found = order.ids(start, stop)
        return found if self.members is None else self.members[found].astype(np.int64)


def strata_of(
    layouts: Sequence[ShardLayout],
    balance: ClassBalance | None,
    filters: Sequence[DatasetFilter | None] | None = None,
) -> list[Stratum]:
    """Returns the strata of datasets, in the order of the datasets and of the classes.

    A class without samples is not a stratum.

    Args:
        layouts: How the samples of each dataset are distributed over its shards.
        balance: The classes of the samples; None does not balance.
        filters: The filter of each dataset, or None for one whose samples are all used; None for no filter at all.

    Raises:
        PlanError: If `balance` does not have one class for every sample that is used.
    """
    used = [each and each.used_ids() for each in filters or [None] * len(layouts)]
    if balance is None:
        return [
            Stratum(dataset, layout) if ids is None else _stratum(dataset, layout, ids)
            for dataset, (layout, ids) in enumerate(zip(layouts, used, strict=True))
        ]
    sizes = [layout.samples if ids is None else len(ids) for layout, ids in zip(layouts, used, strict=True)]
    if any(known is not None and len(known) != size for known, size in zip(balance.classes, sizes, strict=True)):
        raise PlanError("the classes of the samples are those of another dataset: a dataset has another size.")
    return [
        stratum
        for dataset, (layout, classes, ids) in enumerate(zip(layouts, balance.classes, used, strict=True))
        for stratum in _classes(dataset, layout, classes, ids, balance.exponent)
    ]


def _classes(
    dataset: int,
    layout: ShardLayout,
    classes: UInt8[np.ndarray, " samples"] | None,
    used: Ids | None,
    exponent: float,
) -> Iterator[Stratum]:
    if classes is None:
        yield Stratum(dataset, layout) if used is None else _stratum(dataset, layout, used)
        return
    present, counts = np.unique(classes, return_counts=True)
    for each, share in zip(present.tolist(), class_shares(counts, exponent).tolist(), strict=True):
        members = np.flatnonzero(classes == each).astype(np.int64)
        yield _stratum(dataset, layout, members if used is None else used[members], each + 1, share)


def _stratum(dataset: int, layout: ShardLayout, members: Ids, number: int = 0, share: float = 1.0) -> Stratum:
    # Shards without a member are left out of the layout.
    in_shards = np.bincount(layout.shard_of(members), minlength=len(layout.counts))
    kept = members.astype(np.int32) if layout.samples < 1 << 31 else members
    return Stratum(dataset, ShardLayout(in_shards[in_shards > 0]), kept, number, share)


def class_shares(
    counts: Sequence[int] | Int64[np.ndarray, " classes"], exponent: float
) -> Float64[np.ndarray, " classes"]:
    """Returns the share of each class among the samples that are drawn; `counts` are the samples of each class."""
    wanted = np.asarray(counts, dtype=np.float64) ** (1 - exponent)
    return wanted / wanted.sum()
