"""Defines the settings of the training data: which datasets are read, in which order, and how samples are changed.

The random changes of images, the choice of captions, and the tars of other programs have modules of their own.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from emocap_pretrain.config.augmentation import AugmentConfig
from emocap_pretrain.config.captions import CaptionsConfig
from emocap_pretrain.config.fields import (
    Count,
    Fraction,
    LabelName,
    Positive,
    Section,
    SetName,
    Weight,
)
from emocap_pretrain.config.location import Location
from emocap_pretrain.config.webdataset import WebDatasetConfig


class MixtureDatasetConfig(Section):
    """Configures one dataset of a mixture."""

    url: Location = Field(description="Folder or URL of a packed dataset")
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Share of the samples that come from this dataset, relative to the other weights; default its "
        "number of samples.",
    )
    balance: bool = Field(
        default=True, description="Whether data.balance applies to this dataset; false for one without the label."
    )
    filter: Location | None = Field(
        default=None, description="Filter file: the samples and sentences of this dataset that it names are not used."
    )


class BalanceConfig(Section):
    """Configures how often the samples of each class of a label are drawn."""

    label: LabelName = Field(description="Name of the label in the dataset, such as emotion.")
    weights: Literal["inverse", "inverse_sqrt"] = Field(
        default="inverse_sqrt",
        description="inverse draws all classes equally often. inverse_sqrt draws a class in proportion to the square "
        "root of its number of samples, so that the samples of rare classes are repeated less.",
    )


class DataConfig(Section):
    """Configures which samples are read, in which order, and how images are augmented."""

    url: Location | None = Field(
        default=None, description="Folder or URL of a packed dataset (the one that holds manifest.json)."
    )
    mix: tuple[MixtureDatasetConfig, ...] = Field(
        default=(), description="Several datasets in place of url, each with its share of the samples."
    )
    filter: Location | None = Field(
        default=None,
        description="Filter file of the dataset at url: the samples and sentences that it names are not used. With "
        "mix, each dataset has its own.",
    )
    webdataset: WebDatasetConfig | None = Field(
        default=None,
        description="Tars of other programs in place of url, which are streamed without packing. A run on them does "
        "not resume at the exact sample.",
    )
    captions_from: tuple[SetName, ...] | None = Field(
        default=None,
        description="All sets from whose faces or labels the captions came, such as [ferplus], by the names of "
        "`emocap benchmarks list` or own names; null if this is unknown. Results of prompts say what follows from it.",
    )
    balance: BalanceConfig | None = Field(
        default=None, description="Draws the samples of rare classes more often; null draws every sample equally often."
    )
    shuffle_window: Positive | None = Field(
        default=None,
        description="Number of samples that are shuffled together; default 8 global batches, and at least 16,384.",
    )
    cache: Location = Field(
        default="~/.cache/emocap/shards",
        validate_default=True,
        description="Folder on the node's own disk that caches data from object storage.",
    )
    cache_gb: Weight = Field(default=32, description="Largest size of the cache in GB; 0 switches the cache off.")
    drop_last: bool = Field(
        default=False, description="Leave out the remainder of an epoch that does not fill a global batch."
    )
    workers: Count = Field(default=1, description="Loader processes of each rank; 0 loads in the training process.")
    prefetch: Positive = Field(default=4, description="Batches that each loader process prepares in advance.")
    error_budget: Count = Field(
        default=0, description="Number of damaged samples, over all ranks, that the run leaves out before it stops."
    )
    crop: Fraction = Field(
        default=0.8, description="Smallest share of the image side that a random crop keeps; 1 is no crop."
    )
    flip: Fraction = Field(
        default=0.5,
        description="Probability that an image is mirrored. English captions that name a side are changed with it "
        "(left becomes right); an image with an ambiguous caption is not mirrored. If captions name sides in another "
        "language, set 0.",
    )
    augment: AugmentConfig = Field(
        default=AugmentConfig(), description="Further random changes of images; none by default."
    )
    captions: CaptionsConfig = Field(
        default=CaptionsConfig(), description="Which caption of an image is trained, and which parts of it."
    )

    @property
    def datasets(self) -> tuple[MixtureDatasetConfig, ...]:
        """Returns the packed datasets that are read: those of `mix`, or the one at `url`; none with `webdataset`."""
        return self.mix or (() if self.url is None else (MixtureDatasetConfig(url=self.url, filter=self.filter),))

    @property
    def urls_by_key(self) -> dict[str, str]:
        """Returns the URL of each packed dataset by the key of its setting, such as "data.url"."""
        keys = [f"data.mix[{place}].url" for place in range(len(self.mix))] or ["data.url"]
        # Without a packed dataset there are fewer URLs than keys.
        return dict(zip(keys, (dataset.url for dataset in self.datasets), strict=False))

    @property
    def filters_by_key(self) -> dict[str, str | None]:
        """Returns the filter file of each packed dataset, or None, by the key of its setting, such as "data.filter"."""
        keys = [key.removesuffix("url") + "filter" for key in self.urls_by_key]
        return dict(zip(keys, (dataset.filter for dataset in self.datasets), strict=True))

    def window_samples(self, global_batch: int) -> int:
        """Returns the approximate size of a window: a group of shards whose samples are shuffled together.

        By default a window is far larger than a batch, so that a batch contains samples of many shards. With a window
        of about one batch, the samples of a shard would be in the same step in every epoch. They would then always be
        negatives of each other.
        """
        return self.shuffle_window or max(8 * global_batch, 1 << 14)

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> "DataConfig":
        if (self.url is not None) + bool(self.mix) + (self.webdataset is not None) != 1:
            raise ValueError(
                "give either url, the one dataset, or mix, a list of {url, weight}, or webdataset, the tars of another "
                "program as {url, samples}."
            )
        return self

    @model_validator(mode="after")
    def _a_filter_has_its_dataset(self) -> "DataConfig":
        if self.filter is not None and self.url is None:
            raise ValueError(
                "filter names samples of the packed dataset at url: write it beside each dataset of mix, or pack the "
                "tars of webdataset (emocap pack) and make a filter of the result."
            )
        return self

    @model_validator(mode="after")
    def _an_index_exists_where_it_is_needed(self) -> "DataConfig":
        if self.webdataset is None:
            return self
        packed = "pack the tars (emocap pack), and give the result as url"
        if self.balance is not None:
            raise ValueError(f"balance needs the labels of all samples before the start: leave it out, or {packed}.")
        if self.error_budget:
            raise ValueError(
                "error_budget counts damaged samples by their place in an index; with webdataset, what cannot be used "
                f"is left out and counted without a budget: leave it out, or {packed}."
            )
        if self.shuffle_window is not None:
            raise ValueError(
                f"shuffle_window needs an index of the samples: set webdataset.shuffle_buffer instead, or {packed}."
            )
        return self

    @model_validator(mode="after")
    def _balance_applies(self) -> "DataConfig":
        declared = [dataset.balance for dataset in self.datasets]
        if self.balance is None and not all(declared):
            raise ValueError(
                "mix: balance=false needs data.balance, which says by which label the others are balanced."
            )
        if self.balance is not None and not any(declared):
            raise ValueError("balance applies to no dataset, because each one of mix has balance=false.")
        return self
