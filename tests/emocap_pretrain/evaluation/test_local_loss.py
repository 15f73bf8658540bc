"""Tests the local loss on held-out data against docs/method.md, against training, on ranks, and with a cache."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emocap_shards.sample import Caption
from emocap_shards.store import open_store
from emocap_shards.stream import Stream
from evaluation_jobs import embedder_of
from gloo_ranks import on_gloo
from pretrain_fakes import changed, objective_of

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.parts import PARTS
from emocap_pretrain.evaluation import local_loss as tested
from emocap_pretrain.evaluation import run_tasks
from emocap_pretrain.evaluation.examples import Example, LeftOut, PackedSource
from emocap_pretrain.evaluation.feature_cache import FeatureCache
from emocap_pretrain.evaluation.features import Extraction
from emocap_pretrain.evaluation.local_loss import batches_of, local_loss
from emocap_pretrain.evaluation.loss_values import LossValues
from emocap_pretrain.inference.alignment import LocalAlignment
from emocap_pretrain.inference.embedder import Embedder
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_collate

ALONE = RankGroup(Rank(), "cpu", None)


def trained(config: Config) -> Embedder:
    """Returns a model with random weights, as if it had been trained with local sentences."""
    lengths = config.model.text.lengths
    local = LocalAlignment.of(config.objective, lengths.local)
    return replace(embedder_of(config), local=local, lengths=lengths.by_part, objective=config.objective)


@dataclass(frozen=True)
class Gaps(PackedSource):
    """A packed dataset in which every fifth sample has no caption, and every fourth one no local sentence."""

    def examples(self, numbers: range) -> Sequence[Example | LeftOut]:
        found = zip(numbers, super().examples(numbers), strict=True)
        return [self._with_gaps(number, each) for number, each in found if isinstance(each, Example)]

    def _with_gaps(self, number: int, example: Example) -> Example:
        if number % 5 == 0:
            return replace(example, captions=())
        if number % 4 == 0:
            return replace(example, captions=(Caption(example.captions[0].global_, (), ""),))
        return example


def loss_of(config: Config, source: PackedSource, rows: int, world: RankGroup = ALONE, **changes: Any) -> Any:
    extraction = Extraction(trained(config), 4, PARTS[:1], **changes)
    return local_loss(extraction, source, extraction.collect(source, world), world, most_rows=rows)


def on_ranks(world: RankGroup, config: Config, url: str) -> Any:
    return loss_of(config, Gaps(url), 4, world)


def formula(embedder: Embedder, examples: Sequence[Example], sharpness: float) -> float:
    """Returns the loss of docs/method.md, section 2, with loops in float64."""
    crops = [each.content.crops(embedder.model.pixels, "center")[0] for each in examples]
    patches = embedder.patches(crops).double().numpy()
    owner = [row for row, each in enumerate(examples) for _ in each.captions[0].local]
    words = [text for each in examples for text in each.captions[0].local]
    # The same passes as below, because the last bits of a vector depend on the size of its pass.
    passes = [embedder.sentences(words[at : at + 4], embedder.length_of(PARTS[2])) for at in range(0, len(words), 4)]
    sentences = torch.cat(passes).double().numpy()
    scores = np.zeros((len(examples), len(words)))
    for i in range(len(examples)):
        for n in range(len(words)):
            z = patches[i] @ sentences[n]
            a = np.exp(sharpness * z) / np.exp(sharpness * z).sum()
            scores[i, n] = embedder.model.local_scale * (a * z).sum()
    of_images = [
        math.log(np.exp(scores[i]).sum()) - np.mean([scores[i, n] for n in range(len(words)) if owner[n] == i])
        for i in range(len(examples))
        if i in owner
    ]
    of_sentences = [math.log(np.exp(scores[:, n]).sum()) - scores[owner[n], n] for n in range(len(words))]
    return float(np.mean(of_images) + np.mean(of_sentences)) / 2


def test_the_loss_is_the_mean_over_batches_of_the_formula_in_float64(tiny_config: Config, faces: str) -> None:
    source, sharpness = Gaps(faces), tiny_config.objective.sharpness
    captioned = [number for number in range(24) if number % 5]  # 19 faces: four batches of four, and a rest of three.
    batches = batches_of(captioned, 4)
    assert [len(each) for each in batches] == [4] * 4
    examples = [[source.examples(range(number, number + 1))[0] for number in each] for each in batches]
    wanted = [formula(trained(tiny_config), each, sharpness) for each in examples]  # pyright: ignore[reportArgumentType]
    found = loss_of(tiny_config, source, 4)
    assert found.loss == pytest.approx(np.mean(wanted), rel=1e-12)
    counts = [sum(len(each.captions[0].local) for each in batch) for batch in examples]  # pyright: ignore[reportAttributeAccessIssue]
    assert found.ignorant == pytest.approx(np.mean([(math.log(count) + math.log(4)) / 2 for count in counts]))
    # A smaller dataset is one batch.
    assert batches_of([3, 4], 100) == [[3, 4]]
    assert batches_of([3], 100) == []


@pytest.mark.parametrize("changes", [{}, {"scope": "image"}, {"patch_mask": {"contrast": 8}, "sharpness": 3.0}])
def test_the_loss_of_a_batch_is_that_of_training(tiny_config: Config, faces: str, changes: dict[str, object]) -> None:
    config = changed(tiny_config, **{f"objective__{name}": value for name, value in changes.items()})
    embedder = trained(config)
    samples = [embedder.cropped(sample) for sample in Stream(url=faces, global_batch=1).read(range(24))]
    assert embedder.tokenizer is not None
    batch = build_collate(config, embedder.tokenizer)(samples)
    with torch.inference_mode():
        wanted = float(objective_of(config)(embedder.model(batch), batch, 0).metrics["local/loss"])
    assert loss_of(config, PackedSource(faces), 24).loss == pytest.approx(wanted, rel=1e-5)  # float32 in training.


def test_a_model_that_gives_all_pairs_one_score_has_the_loss_of_the_baseline(
    tiny_config: Config, faces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emocap_pretrain.model.pair.TowerPair.local_scale", 0.0)
    for scope in ("batch", "image"):
        found = loss_of(changed(tiny_config, objective__scope=scope), Gaps(faces), 4)
        assert found.loss == pytest.approx(found.ignorant, rel=1e-12)


def test_two_ranks_find_the_loss_of_one_to_the_bit(tiny_config: Config, faces: str) -> None:
    wanted = on_ranks(ALONE, tiny_config, faces)
    assert isinstance(wanted, LossValues)
    assert on_gloo(2, on_ranks, tiny_config, faces) == [wanted, None]


def test_a_kept_loss_is_the_computed_one_and_reads_no_patches(
    tiny_config: Config, faces: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(open_store(str(tmp_path)), "model")
    plain, first = loss_of(tiny_config, Gaps(faces), 4), loss_of(tiny_config, Gaps(faces), 4, cache=cache)
    monkeypatch.setattr(tested, "_patches", None)
    assert plain == first == loss_of(tiny_config, Gaps(faces), 4, cache=cache)
    with pytest.raises(TypeError):  # Another sharpness is another loss.
        loss_of(changed(tiny_config, objective__sharpness=2.0), Gaps(faces), 4, cache=cache)


def test_patches_are_computed_batch_by_batch(tiny_config: Config, faces: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    patches = Embedder.patches
    monkeypatch.setattr(Embedder, "patches", lambda model, crops: rows.append(len(crops)) or patches(model, crops))
    loss_of(tiny_config, PackedSource(faces), 6)
    assert rows == [4, 2] * 4


def test_the_evaluation_of_a_run_has_the_local_part_only_if_it_was_trained(tiny_config: Config, faces: str) -> None:
    def scores(config: Config) -> dict[str, float]:
        evaluation = config.evaluation.model_copy(update={"tasks": ("held_out_loss",), "loss_batch": 10, "url": faces})
        (result,) = run_tasks.evaluate(evaluation, trained(config), ALONE, url=faces)
        return {score.name: score.value for score in result.scores}

    found = scores(tiny_config)
    weights = tiny_config.objective.weights
    assert found["loss"] == pytest.approx(sum(weights[name] * found[f"loss_{name}"] for name in weights))
    assert "loss_local" not in scores(changed(tiny_config, objective__local=0.0))
