"""Says of each result by prompts whether it is zero-shot, or whether the training captions came from the same faces.

A model that was trained on captions of the training split of a dataset has learned how this dataset names its faces.
Its result on the test split is called "prompted, in domain". A result is zero-shot only if no training caption came
from the scored faces or their labels.

The addresses of two datasets show whether they are splits of one dataset. They do not show whose faces the captions of
other datasets describe, so the user must say this (`data.captions_from`). If it is not known, the result is called
unknown.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emocap_shards.manifest import MANIFEST
from emocap_shards.mask import MASK

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.config.schema import EvaluationConfig
from emocap_pretrain.config.stored import data_urls
from emocap_pretrain.run_folder.results import Domain, TaskResult

# The last folder of the address of a split. Datasets whose addresses differ in it alone are splits of one dataset.
SPLITS = frozenset({"train", "training", "valid", "val", "validation", "dev", "test", "eval"})
_SHORTEST_STEM, _LONGEST_ENDING = 3, 3


@dataclass(frozen=True, slots=True)
class TrainingCaptions:
    """Holds what is known about the captions on which a model was trained.

    Attributes:
        urls: The addresses of the packed datasets with the captions, as a config stores them.
        sources: The names of benchmarks, or of other sets of faces, from whose faces or labels captions came.
        is_complete: Whether all captions came from `sources`. False if this is not known.
        words: All words in the captions of the datasets `urls`, in lower case; None if one of them was not read.
    """

    urls: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    is_complete: bool = False
    words: frozenset[str] | None = None

    @classmethod
    def of_run(cls, stored: Mapping[str, Any]) -> "TrainingCaptions":
        """Returns what the config of a run says about its training captions. No address in the config is opened.

        The sources are incomplete (`is_complete`) if the setting `data.captions_from` is not set. They are also
        incomplete if the run began with the weights of a whole model (`model.from`), because the captions of that model
        are not known. Pretrained weights of a single tower change nothing, because they were not trained on captions of
        faces.

        Args:
            stored: The config of the run, as `Config.stored` returns it.
        """
        data = stored["data"]
        urls = tuple(data_urls(data))
        named = data["captions_from"]
        return cls(urls, tuple(named or ()), is_complete=named is not None and not stored["model"]["from"])

    def also(
        self, sources: Sequence[str] = (), urls: Sequence[str] = (), words: frozenset[str] | None = None
    ) -> "TrainingCaptions":
        """Returns what is known about the training captions, with the sources and addresses that the user adds.

        If the user names any sources, all captions count as coming from the known sources (`is_complete`).

        Args:
            sources: Names of sets of faces from which captions came, in addition to `self.sources`.
            urls: Addresses of packed datasets with training captions, in addition to `self.urls`.
            words: All words of the captions of the datasets in `urls`, in lower case; None if they were not read. They
                are dropped if `self.urls` has another dataset, because its captions may have other words.
        """
        has_unread = any(not any(_is_same(each, read) for read in urls) for each in self.urls)
        return TrainingCaptions(
            urls=(*self.urls, *urls),
            sources=(*self.sources, *sources),
            is_complete=self.is_complete or bool(sources),
            words=None if has_unread else words,
        )


def names_and_datasets(texts: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Divides texts of the user into names of sets of faces, and addresses of packed datasets.

    A text with a slash is the path or URL of a dataset. A text without a slash is a name, unless a local folder of this
    name has a manifest. Such a folder, for example `train`, must not count as a set, because naming any set says that
    all sources of the captions are known.

    Returns:
        The names, and the addresses.
    """
    names: list[str] = []
    urls: list[str] = []
    for text in texts:
        is_dataset = "/" in text or (bool(text) and Path(text, MANIFEST).is_file())
        (urls if is_dataset else names).append(text)
    return tuple(names), tuple(urls)


def with_domains(
    results: Iterable[TaskResult], training: TrainingCaptions, settings: EvaluationConfig, *, url: str | None
) -> tuple[TaskResult, ...]:
    """Returns the results with their domain: whether a result by prompts is zero-shot, in domain or unknown.

    Args:
        results: The results. The `domain` of a task without prompts is None, and its result is returned as it is.
        training: What is known about the training captions of the model.
        settings: The settings of the evaluation. They name the sets from which the scored faces come (`faces_from`),
            and the words of the classes.
        url: The address of the scored dataset, as a config stores it; None if benchmarks were scored.
    """
    return tuple(_named(result, training, settings, url) for result in results)


def _named(result: TaskResult, training: TrainingCaptions, settings: EvaluationConfig, url: str | None) -> TaskResult:
    if result.domain is None:
        return result
    own = (result.benchmark,) if result.benchmark else settings.faces_from or ()
    found = domain_of(training, own, url=None if result.benchmark else url)
    return replace(result, domain=replace(found, unseen=_unseen(result, training, settings)))


def domain_of(training: TrainingCaptions, faces_from: Sequence[str], *, url: str | None) -> Domain:
    """Returns how the training captions relate to a scored dataset: zero-shot, in domain or unknown, with the reason.

    Args:
        training: What is known about the training captions of the model.
        faces_from: The names of the sets from which the scored faces come; empty if they are unknown.
        url: The address of the scored dataset if it is a packed one; None if it is a benchmark.
    """
    for each in training.urls if url else ():
        if _is_split_of(url or "", each):
            return Domain("in domain", f"trained on {each}")
    scored, trained = collections_of(faces_from), collections_of(training.sources)
    if common := sorted(scored & trained):
        return Domain("in domain", f"captions of {', '.join(common)}")
    if not training.is_complete:
        return Domain("unknown", "the source of the training captions is not known")
    if not scored:
        return Domain("unknown", "the source of these faces is not known")
    named = ", ".join(sorted(training.sources)) or "no named set"
    return Domain("zero-shot", f"captions of {named} alone")


def collections_of(names: Iterable[str]) -> set[str]:
    """Returns `names` and, for each benchmark among them, the names of the other sets whose faces it uses."""
    known = catalogue.names()
    return {each for name in names for each in (name, *(catalogue.card(name).faces if name in known else ()))}


def _is_split_of(url: str, other: str) -> bool:
    """Returns whether two addresses are equal, or are the addresses of two splits of one dataset.

    The result is False if a secret in one of them is masked, because then the address is not known.
    """
    if MASK in url or MASK in other:
        return False
    # A run stores absolute paths, and a user may type relative ones. The link of a split may lead to another name, so
    # paths are compared both with and without their links.
    return any(_are_splits(url, other, spell) for spell in (os.path.abspath, os.path.realpath))


def _is_same(url: str, other: str) -> bool:
    """Returns whether two addresses are equal; False if a secret in one of them is masked."""
    if MASK in url or MASK in other:
        return False
    return any(_spelled(url, spell) == _spelled(other, spell) for spell in (os.path.abspath, os.path.realpath))


def _spelled(url: str, spell: Callable[[str], str]) -> str:
    return url.rstrip("/") if "://" in url else spell(url)


def _are_splits(url: str, other: str, spell: Callable[[str], str]) -> bool:
    """Returns whether two addresses are those of one dataset or its splits, if local paths are spelled by `spell`."""
    one, two = _spelled(url, spell), _spelled(other, spell)
    if one == two:
        return True
    (folder, _, split), (other_folder, _, other_split) = one.rpartition("/"), two.rpartition("/")
    return folder == other_folder and split in SPLITS and other_split in SPLITS


def _unseen(result: TaskResult, training: TrainingCaptions, settings: EvaluationConfig) -> tuple[str, ...]:
    """Returns the classes whose words do not occur in the training captions, not even with another ending.

    The name of a class counts as one of its words. The result is empty if the words of the captions are not known, or
    if `result` has no values by class.
    """
    if training.words is None:
        return ()
    classes = result.class_values[0].classes if result.class_values else ()
    words = {name: (name, *(settings.classes or {}).get(name, ())) for name in classes}
    return tuple(
        name
        for name, texts in words.items()
        if not any(_is_alike(word, seen) for text in texts for word in text.lower().split() for seen in training.words)
    )


def _is_alike(one: str, two: str) -> bool:
    """Returns whether two words begin alike, so that they may be forms of one word, such as anger and angry.

    Unrelated words may begin alike too. Then a class counts as seen although it is not. This mistake is the safe one,
    because it never calls a class zero-shot.
    """
    needed = max(_SHORTEST_STEM, min(len(one), len(two)) - _LONGEST_ENDING)
    return one[:needed] == two[:needed]
