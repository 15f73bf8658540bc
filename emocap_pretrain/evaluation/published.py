"""Finds published scores of other models on the cards of benchmarks, for display beside the user's scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from emocap_pretrain.benchmarks import catalogue
from emocap_pretrain.benchmarks.card import Card, Published

PROMPTS_ALONE = "prompts alone"  # The first words of the protocols on the cards that train nothing.


@dataclass(frozen=True, slots=True)
class Peers:
    """Holds published scores of models (peers) that classify by prompts alone, on some benchmarks.

    Attributes:
        models: The models, those with the most scores first. Of models with equally many scores, the one with the
            highest mean comes first.
        scores: For each model and benchmark the published score; None if there is none.
    """

    models: tuple[str, ...]
    scores: tuple[tuple[Published | None, ...], ...]


def known_card(name: str) -> Card | None:
    """Returns the card of a benchmark; None if this version has none."""
    return catalogue.card(name) if name in catalogue.names() else None


def peers(axes: Sequence[tuple[str, str]], most: int) -> Peers:
    """Returns the models with the most published scores by prompts alone on the given benchmarks.

    Args:
        axes: The name of each benchmark, and the name of the score to look up on its card.
        most: The largest number of models.
    """
    by_axis: list[dict[str, Published]] = []
    for benchmark, score in axes:
        card = known_card(benchmark)
        listed = card.published if card else ()
        fitting = [each for each in listed if each.score == score and each.protocol.startswith(PROMPTS_ALONE)]
        by_axis.append({each.model: each for each in fitting})
    found: dict[str, list[float]] = {}
    for each in by_axis:
        for model, published in each.items():
            found.setdefault(model, []).append(published.value)
    # Those with the most scores, and among them the best ones.
    ranked = sorted(found, key=lambda model: (-len(found[model]), -sum(found[model]) / len(found[model])))
    models = tuple(ranked[:most])
    return Peers(models, tuple(tuple(each.get(model) for each in by_axis) for model in models))
