"""Defines the jobs of the ranks in the tests of captions. The processes of the ranks import this module."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from emocap_shards.plan import rank_slice
from emocap_shards.store import Store, open_store
from torch import nn

import emocap_pretrain as emocap
from emocap_pretrain.checkpoint.manifest import File, newest
from emocap_pretrain.generation import patches as patches_module
from emocap_pretrain.generation import scoring
from emocap_pretrain.generation.captioner import Captioner
from emocap_pretrain.generation.language_model import LanguageModel, load_language_model
from emocap_pretrain.generation.patches import (
    CaptionedImage,
    PatchFiles,
    PatchSettings,
    computed_patches,
    opened_patches,
)
from emocap_pretrain.generation.projector import Projector
from emocap_pretrain.generation.training import (
    CaptionBatch,
    CaptionObjective,
    ImageTokens,
    ProjectorTrainingConfig,
    train,
)
from emocap_pretrain.ranks.group import ALONE, RankGroup
from emocap_pretrain.run_folder.attempts import Attempt


class Stored(NamedTuple):
    """Says where patches lie."""

    folder: Path
    digest: str

    @classmethod
    def of(cls, patches: PatchFiles) -> "Stored":
        return cls(patches.parts[0].parent.parent, patches.digest)


def new(language: LanguageModel, width: int, **settings: Any) -> Captioner:
    return Captioner(Projector(width, language.width), language, most_tokens=24, **settings)


def trained(
    folder: Path,
    captioner: Captioner,
    patches: PatchFiles,
    config: ProjectorTrainingConfig,
    world: RankGroup = ALONE,
    **options: Any,
) -> Store:
    """Trains in a folder, and returns the store of its checkpoints."""
    store = open_store(str(folder))
    number = world.patient("attempt").run_on_main(lambda: Attempt.begin(store).number)
    train(captioner, patches, config, store, world, Attempt(store, number), **options)
    return store


def files_of(store: Store) -> tuple[File, ...]:
    """Returns the files of the newest checkpoint with their digests: the weights and the state of the optimizer."""
    found = newest(store)
    assert found is not None
    return found.files


def losses(
    world: RankGroup, llama: Path, of: Stored, config: ProjectorTrainingConfig, folder: Path
) -> tuple[list[float], list[float], np.ndarray]:
    """Trains on all ranks. Returns the losses, the norms of the gradients, and the weights of the projector."""
    patches, language = opened_patches(of.folder, of.digest), load_language_model(str(llama))
    captioner = new(language, patches.shape[1])
    found: list[tuple[float, float]] = []

    def report(_step: int, metrics: Mapping[str, float]) -> None:
        found.append((metrics["loss"], metrics["gradient_norm"]))

    trained(folder, captioner, patches, config, world, report=report)
    weights = torch.cat([each.detach().flatten() for each in captioner.projector.parameters()])
    return [loss for loss, _ in found], [norm for _, norm in found], weights.numpy()


def float64_gradient(
    world: RankGroup, llama: Path, of: Stored, config: ProjectorTrainingConfig
) -> tuple[float, np.ndarray]:
    """Returns the loss of the first batch, and its gradient as DeepSpeed combines it: the mean over the ranks.

    DeepSpeed itself refuses gradients in float64.
    """
    patches, language = opened_patches(of.folder, of.digest), load_language_model(str(llama))
    captioner = new(language, patches.shape[1])
    language.model.double()
    captioner.projector.double()
    _use_double_norms(language.model)
    rows = [row for row, _ in config.rows(0, len(patches))][rank_slice(config.batch, world.rank, world.world_size)]
    batch = CaptionBatch(patches.patches(rows), [patches.images[row].captions[0] for row in rows])
    loss = CaptionObjective(captioner, world.process_group)(ImageTokens(captioner)(batch), batch, 0).loss
    loss.backward()
    gradient = torch.cat([each.grad.flatten() for each in captioner.projector.parameters() if each.grad is not None])
    of_ranks = world.gather(gradient.numpy())
    return loss.item(), np.mean(of_ranks, axis=0)


def _use_double_norms(model: nn.Module) -> None:
    """Replaces the norms of a Llama, which compute in float32 whatever the type of their input is."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__ == "LlamaRMSNorm":
                double = nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64)
                double.load_state_dict(norm.state_dict())
                setattr(parent, name, double)


def scored(
    world: RankGroup, run_url: str, llama: Path, data: str, of: Stored, folder: Path
) -> tuple[tuple[CaptionedImage, ...], list[np.ndarray], scoring.CaptionScores | None]:
    """Computes the patches of a dataset in parts of 3 images, and scores a new captioner in batches of 2 images."""
    patches_module.PART_IMAGES, scoring.BATCH = 3, 2
    embedder, language = emocap.load(run_url, device="cpu").embedder, load_language_model(str(llama))
    everyone = world.patient("captions")
    test = computed_patches(embedder, data, PatchSettings(image_tokens=4), folder, world=everyone)
    captioner = new(language, test.shape[1])
    train_patches = opened_patches(of.folder, of.digest)
    found = scoring.score(captioner, captioner, train_patches, test, world=everyone)
    return test.images, [np.array(block) for block in test.pooled_blocks()], found
