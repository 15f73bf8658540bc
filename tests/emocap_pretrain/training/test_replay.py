"""Tests cached representations against a single pass over all rows."""

from collections.abc import Sequence

import pytest
import torch
from engine_batches import VOCABULARY, batch_of
from engine_jobs import Steps, engine_at, stepped, walked
from gloo_ranks import on_gloo
from pretrain_fakes import changed, objective_of, stand_alone
from torch import Tensor

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch
from emocap_pretrain.model.pair import Embeddings, TowerPair
from emocap_pretrain.ranks.group import RankGroup
from emocap_pretrain.ranks.info import Rank
from emocap_pretrain.training.build import build_model
from emocap_pretrain.training.representation_cache import Cached

ALONE = RankGroup(Rank(), "cpu", None)
STAGES = (0, 1, 2, 3)
DROPPING = {"proj_drop_rate": 0.3, "drop_path_rate": 0.3}


@pytest.fixture(autouse=True)
def group() -> None:
    stand_alone()


@pytest.fixture
def config(tiny_config: Config) -> Config:
    return changed(tiny_config, global_batch=9)


def assert_alike(found: Steps, wanted: Steps) -> None:
    for row, other in zip(found.rows, wanted.rows, strict=True):
        assert row == pytest.approx(other, rel=1e-4)
    for name, weight in found.weights.items():
        torch.testing.assert_close(weight, wanted.weights[name], rtol=1e-3, atol=5e-5, msg=name)


@pytest.mark.parametrize("stage", STAGES)
def test_several_passes_walk_the_path_of_one(config: Config, stage: int) -> None:
    # The third step is an epoch's last: with fewer rows than passes, one of them has none.
    rows = (9, 9, 2)
    (wanted,) = walked(ALONE, config, [stage], 4, rows=rows).values()
    (found,) = walked(ALONE, changed(config, micro_batch=3), [stage], 4, rows=rows).values()
    assert_alike(found, wanted)


def test_uneven_ranks_in_several_passes_walk_the_path_of_one_rank(config: Config) -> None:
    # Two ranks of four and five rows in three passes, then one row and two.
    (wanted,) = walked(ALONE, config, [0], 4, rows=(9, 9, 3)).values()
    found = on_gloo(2, walk_in_passes, changed(config, micro_batch=2), (9, 9, 3))
    for stage in STAGES:
        assert_alike(found[0][stage], wanted)
        assert found[1][stage].rows == found[0][stage].rows


def walk_in_passes(world: RankGroup, config: Config, rows: Sequence[int]) -> dict[int, Steps]:
    return walked(world, config, STAGES, 4, rows=rows)


@pytest.mark.parametrize("stage", [0, 2])
def test_both_passes_of_a_part_see_the_same_dropout(config: Config, stage: int) -> None:
    options = {**config.model.image.options, **DROPPING}
    config = changed(config, model__image__options=options, optimizer__clip_norm=0.0, micro_batch=4)
    engine = engine_at(config, ALONE, stage, seed=0)
    torch.manual_seed(0)
    reference = build_model(config, VOCABULARY)
    batch = batch_of(config, 0, range(9))
    gradients = in_one_graph(reference, config, batch)
    (row,) = stepped(engine, config, ALONE, range(1)).rows
    norm = torch.stack([each.norm() for each in gradients.values()]).norm()
    assert row[1] == pytest.approx(float(norm), rel=1e-5)
    # And not by chance: without dropout it is another number.
    plain = changed(config, model__image__options=config.model.image.options | dict.fromkeys(DROPPING, 0.0))
    (calm,) = stepped(engine_at(plain, ALONE, stage, seed=0), plain, ALONE, range(1)).rows
    assert calm[1] != pytest.approx(row[1], rel=1e-2)


def in_one_graph(model: TowerPair, config: Config, batch: Batch) -> dict[str, Tensor]:
    """Returns the gradients of the loss with all parts encoded in one graph, each with its own random numbers."""
    found: list[Embeddings] = []
    for number, each in enumerate(Cached.of(batch, 3, untrained).passes):
        torch.manual_seed(hash((config.seed, 0, 0, number)) % 2**63)
        found.append(model(each.batch))
    objective_of(config)(joined(found), batch, 0).loss.backward()
    return {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


def joined(found: list[Embeddings]) -> Embeddings:
    """Returns the embeddings of all passes in one graph, with the scales of the first pass."""
    texts = {name: torch.cat([each.texts[name] for each in found]) for name in found[0].texts}
    image, patches = (torch.cat([getattr(each, name) for each in found]) for name in ("image", "patches"))
    return Embeddings(image, patches, texts, found[0].scales, found[0].biases, {})


def untrained(number: int, batch: Batch) -> Embeddings:
    texts = {name: torch.zeros((len(each.ids), 4)) for name, each in batch.texts.items()}
    nothing = torch.zeros((batch.rows, 4))
    return Embeddings(nothing, nothing, texts, {"image": torch.ones(()), "patches": torch.ones(())}, {}, {})


@pytest.mark.parametrize(("rows", "passes"), [(9, 3), (9, 4), (9, 9), (2, 4), (0, 3)])
def test_parts_are_the_batch_cut_into_even_shares_with_their_sentences(config: Config, rows: int, passes: int) -> None:
    batch = batch_of(config, 0, range(rows))
    cut = Cached.of(batch, passes, untrained).passes
    assert len(cut) == passes
    sizes = [each.batch.rows for each in cut]
    assert max(sizes) - min(sizes) <= 1
    assert torch.cat([each.batch.images for each in cut]).equal(batch.images)
    for name, texts in batch.texts.items():
        pieces = [each.batch.texts[name] for each in cut]
        assert torch.cat([each.ids for each in pieces]).equal(texts.ids)
        assert torch.cat([each.mask for each in pieces]).equal(texts.mask)
        if texts.owner is not None:
            owners = [each.batch.texts[name].owner + each.rows.start for each in cut]
            assert torch.cat(owners).equal(texts.owner)
        if texts.identity is not None:
            assert torch.cat([each.identity for each in pieces]).equal(texts.identity)


def test_terms_that_are_switched_off_need_no_gradient(config: Config) -> None:
    config = changed(config, objective__local=0.0)
    (wanted,) = walked(ALONE, config, [1], 2).values()
    (found,) = walked(ALONE, changed(config, micro_batch=2), [1], 2).values()
    assert_alike(found, wanted)


class Saved:
    """Counts the bytes that graphs keep for their backward passes, and the largest number so far."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: Tensor) -> "Held":
        return Held(tensor, self)


class Held:
    def __init__(self, tensor: Tensor, counter: Saved) -> None:
        self.tensor, self.counter, self.bytes = tensor, counter, tensor.nbytes
        counter.now += self.bytes
        counter.peak = max(counter.peak, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.bytes


def test_activations_are_those_of_one_part(config: Config) -> None:
    peaks: list[int] = []
    for micro_batch in (None, 2):
        settings = changed(config, global_batch=16, micro_batch=micro_batch)
        engine = engine_at(settings, ALONE, 0, seed=0)
        saved = Saved()
        weights = {each.data_ptr() for each in engine._engine.module.parameters()}
        batch = batch_of(settings, 0, range(16))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, saved=saved, weights=weights: tensor if tensor.data_ptr() in weights else saved.pack(tensor),
            lambda held: held.tensor if isinstance(held, Held) else held,
        ):
            engine.train(batch)
        peaks.append(saved.peak)
    assert peaks[1] < peaks[0] / 4
