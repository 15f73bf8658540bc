"""Tests paired differences of captions, attention maps and losses, and for how often equal models differ by chance."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from emocap_kernels import contrastive_loss, region_contrastive_loss
from imaginary_models import losses_of_two, maps_of_two, scores_of_two, swapped, texts_of_two
from sacrebleu.metrics.bleu import BLEU
from torch.nn.functional import normalize

from emocap_pretrain.evaluation import paired
from emocap_pretrain.evaluation.corpus_scores import bleu
from emocap_pretrain.evaluation.held_out_loss import face_values
from emocap_pretrain.evaluation.intervals import draws
from emocap_pretrain.evaluation.local_loss import values_between_images
from emocap_pretrain.evaluation.outcome_scores import metrics_of, part
from emocap_pretrain.evaluation.paired import differences
from emocap_pretrain.evaluation.pairing import caveats, mismatches
from emocap_pretrain.generation.metrics import measured
from emocap_pretrain.run_folder.outcome_sums import CaptionOutcomes, RegionOutcomes
from emocap_pretrain.run_folder.samples import Samples


@pytest.fixture
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "DRAWS", 200)


def captions(persons: int) -> tuple[CaptionOutcomes, CaptionOutcomes, list[str]]:
    written, references, groups = texts_of_two(np.random.default_rng(0), persons)
    keys = list(map(str, range(len(groups))))
    one, other = (measured(each, references, keys) for each in written)
    return one, other, groups


def test_bleu_of_any_counts_is_that_of_sacrebleu() -> None:
    random = np.random.default_rng(0)
    totals = random.integers(0, 4, (300, 4)) * random.integers(0, 2, (300, 1))
    matches = random.integers(0, totals + 1)
    lengths = random.integers(0, 12, (300, 2))
    counts = np.hstack([matches, totals, lengths]).astype(float)
    found = bleu(counts)(np.eye(300))
    wanted = [
        BLEU.compute_bleu(row[:4], row[4:8], *row[8:], smooth_method="exp") for row in counts.astype(int).tolist()
    ]
    assert found == pytest.approx([each.score / 100 for each in wanted], abs=1e-12)
    assert 0 < (found > 0).mean() < 1


def test_the_values_of_a_batch_are_the_jackknife_of_the_loss_of_training() -> None:
    """The reference removes each face, and calls the kernels of training on the others."""
    generator = torch.Generator().manual_seed(0)
    images, texts = normalize(torch.randn(2, 7, 5, generator=generator, dtype=torch.float64), dim=2)
    ids = torch.tensor([0, 1, 2, 0, 4, 1, 0])

    def of_faces(faces: list[int]) -> float:
        return float(contrastive_loss(images[faces], texts[faces], 30.0, ids=ids[faces]).loss)

    def jackknife(loss: Callable[[list[int]], float], count: int) -> np.ndarray:
        every = list(range(count))
        without = np.array([loss([each for each in every if each != face]) for face in every])
        return loss(every) - (count - 1) * (without - without.mean())

    assert face_values(images, texts, 30.0, ids).numpy() == pytest.approx(jackknife(of_faces, 7), abs=1e-9)
    patches = normalize(torch.randn(5, 4, 6, generator=generator, dtype=torch.float64), dim=2)
    sentences = normalize(torch.randn(8, 6, generator=generator, dtype=torch.float64), dim=1)
    owner = torch.tensor([0, 0, 0, 2, 3, 3, 4, 0])  # Face 1 has no sentence.
    mask = torch.rand(5, 4, generator=generator) < 0.7

    def of_patches(faces: list[int]) -> float:
        kept = torch.isin(owner, torch.tensor(faces))
        place = torch.tensor([faces.index(each) for each in owner[kept].tolist()])
        found = region_contrastive_loss(
            patches[faces], sentences[kept], place, 20.0, sharpness=3.0, patch_mask=mask[faces]
        )
        return float(found.loss)

    values = values_between_images(patches, sentences, owner, 20.0, sharpness=3.0, kept=mask)
    assert values.numpy() == pytest.approx(jackknife(of_patches, 5), abs=1e-9)


def test_a_candidate_that_is_nearly_everything_costs_no_digits() -> None:
    images, texts = (torch.from_numpy(each) for each in (np.eye(3) * 100, np.eye(3)[[1, 0, 2]]))
    found = face_values(images, texts, 1.0, torch.arange(3))
    assert found.mean() == pytest.approx(200 / 3)
    assert bool(found.isfinite().all())


@pytest.mark.usefixtures("_few_draws")
def test_equal_captioners_differ_by_chance_as_often_as_the_level_of_the_test() -> None:
    """A share of 5 % of 200 trials has a standard error of 1.5 %. A test that takes each image as a person fails."""
    one, other, groups = captions(300)
    random, trials = np.random.default_rng(1), 200
    rejected, ignorant = dict.fromkeys(metrics_of(one), 0), dict.fromkeys(metrics_of(one), 0)
    for _ in range(trials):
        ours, theirs, of = swapped(random, one, other, groups, persons=60)
        for counts, samples in ((rejected, of), (ignorant, Samples(of.keys))):
            for name, change in differences((ours, samples), (theirs, samples)).items():
                counts[name] += change.p < 0.05
    assert list(rejected) == ["bleu", "meteor", "rouge_l", "cider"]
    assert max(rejected.values()) / trials < 0.1
    assert min(ignorant.values()) / trials > 0.1


@pytest.mark.usefixtures("_few_draws")
def test_equal_maps_differ_by_chance_as_often_as_the_level_of_the_test() -> None:
    """A test that takes each sentence as a face of its own fails."""
    names, trials = ["attention", "attention_difference", "attention/brow"], 200
    rejected, ignorant = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    for alone, counts in ((False, rejected), (True, ignorant)):
        random = np.random.default_rng(2)
        for _ in range(trials):
            one, other, of = maps_of_two(random, faces=80, alone=alone)
            for name, change in differences((one, of), (other, of), names).items():
                counts[name] += change.p < 0.05
    assert max(rejected.values()) / trials < 0.1
    assert ignorant["attention/brow"] / trials > 0.12


@pytest.mark.usefixtures("_few_draws")
@pytest.mark.parametrize("hubs", [0.0, 5.0], ids=["no hubs", "texts that are similar to all images"])
def test_equal_losses_differ_by_chance_as_often_as_the_level_of_the_test(hubs: float) -> None:
    """A test of the losses of the anchors alone does not know that one text changes the losses of all images."""
    random, trials, rejected, ignorant = np.random.default_rng(3), 200, 0, 0
    for _ in range(trials):
        one, other, of, anchors = losses_of_two(random, faces=64, batches=2, hubs=hubs)
        rejected += differences((one, of), (other, of), ["loss"])["loss"].p < 0.05
        ignorant += abs(anchors.mean()) > 1.96 * anchors.std() / np.sqrt(len(anchors))
    assert rejected / trials < 0.1
    assert (ignorant / trials > 0.2) == (hubs > 0)


def test_true_differences_are_found_on_samples_in_any_order() -> None:
    random = np.random.default_rng(4)
    losses = losses_of_two(random, faces=64, batches=4, gain=0.2)[:3]
    maps = maps_of_two(random, faces=200, gain=0.2)
    written, references, groups = texts_of_two(random, 60)
    keys = list(map(str, range(180)))
    better = [of if row % 2 else written[0][row] for row, (of,) in enumerate(references)]
    captioners = (measured(written[0], references, keys), measured(better, references, keys))
    cases = [(*captioners, Samples(tuple(keys), tuple(groups))), maps, losses]
    for one, other, of in cases:
        assert mismatches((one, of), (other, of)) == []
        found = differences((one, of), (other, of))
        moved = random.permutation(len(of))
        shuffled = Samples(
            tuple(of.keys[place] for place in moved), tuple(of.groups[place] for place in moved if of.groups)
        )
        again = differences((one, of), (replace(part(other, moved), rows=tuple(range(len(of)))), shuffled))
        for name, change in found.items():
            assert (again[name].value, again[name].p) == pytest.approx((change.value, change.p)), name
        main = next(iter(found.values()))
        assert main.p < 0.001
        assert main.interval is not None
        assert main.interval[0] < main.value < main.interval[1]
        assert main.verdict(lower_is_better=one.kind == "losses") == "better"
        assert {each.p for each in differences((one, of), (one, of)).values()} == {1.0}


def test_weighted_samples_have_the_scores_of_repeated_samples() -> None:
    one, _, _ = captions(20)
    for found in (one, maps_of_two(np.random.default_rng(5), faces=60)[0]):
        weights = next(draws((None,) * 60, 3))
        repeated = [part(found, np.repeat(np.arange(60), each.astype(int))) for each in weights]
        for name, metric in metrics_of(found).items():
            wanted = [metrics_of(each)[name](np.ones((1, 60)))[0] for each in repeated]
            assert metric(weights) == pytest.approx(wanted, nan_ok=True)


def test_what_was_found_about_other_texts_is_not_compared() -> None:
    random = np.random.default_rng(6)
    one, _, groups = captions(20)
    of = Samples(tuple(map(str, range(60))), tuple(groups))
    assert mismatches((one, of), (replace(one, references="other"), of)) == ["the references of the images differ"]
    maps, _, faces = maps_of_two(random, faces=30)
    assert mismatches((maps, faces), (replace(maps, about="x"), faces)) == []  # That of the first one is unknown.
    known = replace(maps, about="y")
    assert mismatches((known, faces), (replace(maps, about="x"), faces)) == ["the sentences about the regions differ"]
    fewer = replace(maps, sentences=((0, *maps.sentences[0][1:]), *maps.sentences[1:]))
    assert mismatches((maps, faces), (fewer, faces)) == ["1 with another true value"] or maps.sentences[0][0] == 0
    assert list(caveats(maps, replace(maps, patches=16))) == ["a map has 16 patches, not 9"]
    losses, _, rows, _ = losses_of_two(random, faces=10, batches=1)
    other = replace(losses, about=("y",))
    assert mismatches((losses, rows), (other, rows)) == ["the global part has other batches, texts or positives"]


def test_totals_of_other_weights_or_parts_are_not_compared_and_single_parts_are() -> None:
    losses, other, of, _ = losses_of_two(np.random.default_rng(7), faces=10, batches=2)
    more = replace(other, parts=("global", "local"), weights=(1.0, 0.5), values=other.values * 2, about=("x", "z"))
    for changed in (replace(other, weights=(2.0,)), more, replace(other, weights=())):
        assert mismatches((losses, of), (changed, of)) == []
        assert list(differences((losses, of), (changed, of))) == ["loss_global"]
        assert list(caveats(losses, changed)) == ["the total loss has other parts or weights, so it is not compared"]
    # Models that compare sentences with other patches have a local part of their own.
    elsewhere = replace(more, about=("x", "w"))
    assert mismatches((more, of), (elsewhere, of)) == []
    assert list(differences((more, of), (elsewhere, of))) == ["loss_global"]
    assert list(caveats(more, elsewhere)) == [
        "the local part has other batches, texts or positives, so it is not compared",
        "the total loss has other parts or weights, so it is not compared",
    ]
    assert list(caveats(losses, other)) == []
    assert list(differences((losses, of), (other, of))) == ["loss", "loss_global"]


@pytest.mark.parametrize(
    ("found", "change", "message"),
    [
        ("captions", {"ngrams": ((1,),) * 9}, "ngrams has 9 entries, and should have 10"),
        ("captions", {"values": ((1.0,),)}, "values has 1 entries, and should have 2"),
        ("regions", {"own": ((1.0,),) * 3}, "own has 3 entries, and should have 2"),
        ("regions", {"controlled": ((1, 1),)}, "regions has 2 entries, and should have 1"),
    ],
)
def test_outcomes_that_do_not_fit_together_are_refused(found: str, change: dict[str, object], message: str) -> None:
    one, column = ((1,),), ((1.0,),)
    outcomes: dict[str, CaptionOutcomes | RegionOutcomes] = {
        "captions": CaptionOutcomes((), ((1,),) * 10, ("a", "b"), column * 2),
        "regions": RegionOutcomes((), ("eyes",), ("a", "b"), 4, one, one, column * 2, column * 2, column * 2),
    }
    with pytest.raises(ValueError, match=message):
        replace(outcomes[found], **change)  # pyright: ignore[reportArgumentType]


def test_the_vectors_of_the_simulation_have_the_scores_that_it_promises() -> None:
    (images, texts), _ = scores_of_two(np.random.default_rng(8), faces=2000, hubs=5.0)
    assert float((images @ texts.T).mean(0).quantile(0.98)) > 4
