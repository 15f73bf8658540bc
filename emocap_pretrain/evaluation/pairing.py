"""Says whether what two models have found can be compared sample by sample, and why not."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from emocap_pretrain.evaluation.corpus_scores import TOTAL_LOSS
from emocap_pretrain.evaluation.outcome_scores import entries, keys_of
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, LossOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.outcomes import (
    AnswerOutcomes,
    ClassOutcomes,
    NumberOutcomes,
    Outcomes,
    ProbabilityOutcomes,
    RankOutcomes,
    ShotOutcomes,
    UnitOutcomes,
)
from emocap_pretrain.run_folder.samples import Samples

Name = TypeVar("Name", str, int)

_OTHER_BATCHES = "the {} part has other batches, texts or positives"


def mismatches(one: tuple[Outcomes, Samples], other: tuple[Outcomes, Samples]) -> list[str]:
    """Returns the reasons why two outcomes do not belong to the same samples, each with the number of samples.

    The result is empty if they belong to the same samples. A sample with another true value counts as another sample.
    Outcomes of different kinds have this as their only reason.

    Args:
        one: The outcomes of the first model, with their samples.
        other: The outcomes of the other model, with their samples.
    """
    if one[0].kind != other[0].kind:
        return [f"the kinds of outcomes differ: {one[0].kind} and {other[0].kind}"]
    ours, theirs = (dict(zip(keys_of(*each), _truths(each[0]), strict=True)) for each in (one, other))
    found = [
        (len(entries(one[0])) - len(ours), "of the first occur more than once"),
        (len(entries(other[0])) - len(theirs), "of the other occur more than once"),
        (len(ours.keys() - theirs.keys()), "only in the first"),
        (len(theirs.keys() - ours.keys()), "only in the other"),
        (sum(ours[key] != theirs[key] for key in ours.keys() & theirs.keys()), "with another true value"),
    ]
    reasons = [f"{count:,} {what}" for count, what in found if count]
    # Other samples also have other answers, which need not be said.
    return reasons or [*_choices(one[0], other[0])]


def _choices(one: Outcomes, other: Outcomes) -> Iterator[str]:
    """Yields how the answers differ among which two models have chosen, as far as outcomes of one kind know it."""
    classes = _classes(one), _classes(other)
    if set(classes[0]) != set(classes[1]):
        yield f"the classes to choose from differ: {len(classes[0]):,} and {len(classes[1]):,}"
    digest, reason = _answers(one)
    # An empty digest is unknown, as in files of earlier versions.
    if digest and _answers(other)[0] not in {"", digest}:
        yield reason
    match one, other:
        case ShotOutcomes(), ShotOutcomes():
            if _differ(one.shots, one.chosen, other.shots, other.chosen):
                yield "the probes were trained on other examples"
        case RankOutcomes(), RankOutcomes():
            if one.candidates and other.candidates and one.candidates != other.candidates:
                yield f"the numbers of candidates differ: {one.candidates:,} and {other.candidates:,}"
        case LossOutcomes(), LossOutcomes():
            differing = _differ(one.parts, one.about, other.parts, other.about)
            if len(differing) == len(set(one.parts) & set(other.parts)):  # Otherwise single parts are compared.
                yield from (_OTHER_BATCHES.format(name) for name in differing)
        case _:
            pass


def _answers(outcomes: Outcomes) -> tuple[str, str]:
    """Returns a digest of what is right, and what it means if that of two models differs. Both may be empty."""
    match outcomes:
        case RankOutcomes() | AnswerOutcomes():
            return outcomes.answers, "the answers to choose from, or the right ones, differ"
        case CaptionOutcomes():
            return outcomes.references, "the references of the images differ"
        case RegionOutcomes():
            return outcomes.about, "the sentences about the regions differ"
        case _:
            return "", ""


def _differ(
    ours: Sequence[Name], our_values: Sequence[object], theirs: Sequence[Name], their_values: Sequence[object]
) -> list[Name]:
    """Returns the names that both models have, with other values."""
    known = dict(zip(theirs, their_values, strict=True))
    return [name for name, value in zip(ours, our_values, strict=True) if known.get(name, value) != value]


def caveats(one: Outcomes, other: Outcomes) -> Iterator[str]:
    """Yields what else differs between two outcomes on the same samples, which does not prevent a comparison."""
    if isinstance(one, RegionOutcomes) and isinstance(other, RegionOutcomes) and one.patches != other.patches:
        yield f"a map has {other.patches:,} patches, not {one.patches:,}"
    for reason in incomparable(one, other).values():
        yield f"{reason}, so it is not compared"


def incomparable(one: Outcomes, other: Outcomes) -> dict[str, str]:
    """Returns the names of scores that both outcomes have and that are not compared, each with the reason."""
    if not isinstance(one, LossOutcomes) or not isinstance(other, LossOutcomes):
        return {}
    differing = _differ(one.parts, one.about, other.parts, other.about)
    found = {f"{TOTAL_LOSS}_{name}": _OTHER_BATCHES.format(name) for name in differing}
    ours, theirs = (dict(zip(each.parts, each.weights, strict=False)) for each in (one, other))
    return found if not found and ours == theirs else {**found, TOTAL_LOSS: "the total loss has other parts or weights"}


def _classes(outcomes: Outcomes) -> Sequence[str]:
    match outcomes:
        case ClassOutcomes() | ShotOutcomes() | ProbabilityOutcomes():
            return outcomes.classes
        case _:
            return ()


def _truths(outcomes: Outcomes) -> Sequence[object]:
    match outcomes:
        case NumberOutcomes():
            return list(zip(*outcomes.truth, strict=True))
        case UnitOutcomes():
            return list(zip(*outcomes.shown, strict=True))
        case ClassOutcomes() | ShotOutcomes() | ProbabilityOutcomes():
            return [outcomes.classes[number] for number in outcomes.truth]
        case RegionOutcomes():
            named = [(name, column) for name, column in zip(outcomes.regions, outcomes.sentences, strict=True)]
            counts = zip(*(column for _, column in named), strict=True)
            return [sorted((name, n) for (name, _), n in zip(named, row, strict=True) if n) for row in counts]
        case RankOutcomes() | AnswerOutcomes() | CaptionOutcomes() | LossOutcomes():
            return [None] * len(entries(outcomes))
