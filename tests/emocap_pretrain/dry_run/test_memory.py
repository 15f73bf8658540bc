import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import psutil
import pytest
from emocap_kernels.blocks import BLOCK_BYTES, GPU_BLOCK_BYTES

from emocap_pretrain.config.load import load
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.memory import LOSS_BLOCKS, MemoryEstimate, empty_model, estimate

ROOT = Path(__file__).parents[3]


def estimated(given: Config, ranks: int) -> MemoryEstimate:
    return _estimated(given.model_dump_json(), ranks)


@cache
def _estimated(given: str, ranks: int) -> MemoryEstimate:
    """Returns the estimate for a config. It is cached, because tests share configs and an estimate takes a second."""
    return estimate(Config.model_validate_json(given), ranks, on_gpu=False)


# One step of the real model, loss and optimizer, for each config. What the libraries allocate for themselves at their
# first call is spent before the reading by a step of one row; Linux then forgets its high-water mark. Each config has a
# forked process of its own, so the imports are paid once and no config uses memory that another one has freed.
MEASURED_STEPS = """
import ctypes, gc, json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.schema import Config
from emocap_pretrain.training.build import build_model
from emocap_pretrain.dry_run.memory import _Captions
from emocap_pretrain.training.objective import Objective
from emocap_pretrain.training.representation_cache import Cached
from emocap_pretrain.data.tokenizer import Vocabulary

torch.set_num_threads(1)

def status(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024

def step(config, rows):
    model = build_model(config, Vocabulary(config.model.text.vocabulary, 0))
    optimizer = torch.optim.AdamW(model.parameters())
    number = torch.arange(rows)
    longest = _Captions.of(config, shortest=False).batch(rows, model.pixels)
    texts = {
        name: replace(each, identity=number)
        if each.owner is None
        else replace(each, owner=number.repeat_interleave(len(each.owner) // rows))
        for name, each in longest.texts.items()
    }
    batch = replace(longest, texts=texts)
    objective = Objective.of(config.objective, precision=config.engine.precision)
    passes = batch_split(rows, config.micro_batch, ranks=1).passes
    if passes == 1:
        objective(model(batch), batch, 0).loss.backward()
    else:
        cached = Cached.of(batch, passes, lambda number, part: model(part))
        objective(cached.embeddings, batch, 0).loss.backward()
        for surrogate in cached.surrogates():
            surrogate.backward()
    optimizer.step()

def measure(config):
    step(config, 1)
    gc.collect()
    # What the first step has freed would be used again and not counted, so it is returned to the system.
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(config, config.global_batch)
    print(status("VmHWM") - before, flush=True)

for text in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        measure(Config.model_validate_json(text))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def config(rows: int = 32, *, stage: int = 0, micro_batch: int | None = None, depth: int = 2, **changes) -> Config:
    tree = {
        "name": "m",
        "url": "/nowhere",
        "steps": 1,
        "global_batch": rows,
        "micro_batch": micro_batch,
        "data": {"url": "/nowhere"},
        "model": {
            "embedding": 64,
            "image": {
                "name": "vit_tiny_patch16_224",
                "pixels": 96,
                "options": {"patch_size": 8, "embed_dim": 96, "depth": depth, "num_heads": 3},
            },
            "text": {
                "architecture": {"width": 64, "layers": 2, "heads": 2},
                "vocabulary": 512,
                "lengths": {"global": 16, "local": 16, "summary": 32},
            },
        },
        "engine": {"zero_stage": stage},
    }
    tree["model"] |= changes
    return Config.model_validate(tree)


# Freed blocks go back to the system at once, so that what Linux counts is what is alive.
RETURN_FREED = {"MALLOC_MMAP_THRESHOLD_": "65536"}


MEASURED = {
    "one pass": config(64, depth=4),
    "recomputed": config(64, depth=4, checkpoint_activations=True),
    "several passes": config(128, depth=4, micro_batch=4, embedding=768),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, int]:
    """Returns, for each config of `MEASURED`, by how many bytes a process grows in one training step.

    It is the peak of the resident memory that Linux reports during the step, minus the memory before the step.
    """
    command = [sys.executable, "-c", MEASURED_STEPS, *(each.model_dump_json() for each in MEASURED.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | RETURN_FREED)
    assert done.returncode == 0, done.stderr
    return dict(zip(MEASURED, map(int, done.stdout.split()), strict=True))


@pytest.mark.parametrize("name", MEASURED)
def test_the_estimate_is_close_to_a_measured_step(measured: dict[str, int], name: str) -> None:
    """The estimate is within a quarter of the memory that Linux reports."""
    assert measured[name] > 80e6
    assert 0.8 < estimated(MEASURED[name], 1).total / measured[name] < 1.25, measured


def test_activations_grow_with_the_rows_and_parameters_do_not():
    small, large = estimated(config(4), 1), estimated(config(12), 1)
    assert large.parameters == small.parameters
    assert large.activations == pytest.approx(3 * small.activations, rel=0.02)


def test_passes_bound_the_activations_and_cache_the_embeddings_of_all_rows_with_their_gradients():
    # In a flatter tower, the loss of 96 rows would need more memory than a pass.
    small, large = (estimated(config(rows, micro_batch=16, depth=6), 1) for rows in (32, 96))
    assert large.activations == pytest.approx(small.activations, rel=0.02)
    # 144 patches, and for each image a pooled vector, a caption, a summary and five local sentences.
    one_row = 2 * 4 * 64 * (144 + 1 + 1 + 1 + 5)
    inputs = 3 * 96 * 96 + (16 + 32 + 5 * 16) * 9 + 5 * 8
    assert large.representations == 96 * (one_row + inputs)
    assert small.representations == 32 * (one_row + inputs)
    assert estimated(config(32), 1).representations == 0


def test_the_blocks_of_the_losses_are_larger_on_a_gpu():
    given = config(256, micro_batch=2)  # With so few rows in a pass, the loss is the peak.
    on_gpu, on_cpu = (estimate(given, 1, on_gpu=each).total for each in (True, False))
    assert on_gpu - on_cpu == LOSS_BLOCKS * (GPU_BLOCK_BYTES - BLOCK_BYTES)
    lower = [estimate(given, 1, on_gpu=each, shortest=True).total for each in (True, False)]
    assert lower[0] == lower[1], "fused kernels need no blocks"


def test_recomputing_activations_saves_most_of_them():
    plain, replayed = (estimated(config(8, depth=6, checkpoint_activations=each), 1) for each in (False, True))
    assert replayed.activations < plain.activations / 3


def test_parameters_are_those_of_the_model():
    model = config().model.model_copy(update={"embedding": 65})
    wider = config().model_copy(update={"model": model})
    # One more row in each projection: two read the image's 96 numbers, two the text's 64.
    assert estimated(wider, 1).parameters - estimated(config(), 1).parameters == 2 * 96 + 2 * 64


def taught(config: Config) -> Config:
    """Returns the config with the objective `soft` and a small teacher."""
    teacher = {
        "name": "vit_tiny_patch16_224",
        "pretrained": "hub",
        "options": {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3},
    }
    objective = ObjectiveConfig.model_validate({"kind": "soft", "teacher": teacher})
    return config.model_copy(update={"objective": objective})


def test_a_teacher_takes_memory_and_time_and_is_not_trained():
    found, before = (estimated(each, 1) for each in (taught(config(8)), config(8)))
    assert found.parameters == before.parameters
    assert found.optimizer == before.optimizer
    # Two blocks of 12 x 48 x 48 weights, and patches and places beside them.
    assert 4 * 2 * 12 * 48**2 < found.weights - before.weights < 2 * 4 * 2 * 12 * 48**2
    assert found.row_flops > before.row_flops
    assert found.activations > before.activations


def test_several_passes_repeat_the_forward_pass_of_the_towers_but_not_that_of_the_teacher():
    def row_flops(given: Config) -> int:
        return estimated(given, 1).row_flops

    once, cached = config(8), config(8, micro_batch=4)
    forward = row_flops(cached) - row_flops(once)
    assert forward == pytest.approx(row_flops(once) / 3, rel=0.02)
    assert row_flops(taught(cached)) - row_flops(taught(once)) == forward
    recomputed = [config(8, micro_batch=size, checkpoint_activations=True) for size in (4, None)]
    assert row_flops(recomputed[0]) - row_flops(recomputed[1]) == forward


def by_stage(ranks: int) -> list[MemoryEstimate]:
    return [estimated(config(8, stage=stage), ranks) for stage in range(4)]


def test_each_stage_of_zero_splits_one_more_thing_over_the_ranks():
    plain, optimizer, gradients, weights = by_stage(4)
    size = 4 * plain.parameters
    assert (plain.weights, plain.gradients, plain.optimizer, plain.buffers) == (size, size, 2 * size, 0)
    assert (optimizer.weights, optimizer.gradients, optimizer.optimizer) == (size, size, 3 * size // 4)
    assert (gradients.weights, gradients.gradients, gradients.optimizer) == (size, size // 4, 3 * size // 4)
    assert (weights.weights, weights.gradients, weights.optimizer) == (size // 4, size // 4, 3 * size // 4)
    assert plain.activations == optimizer.activations == gradients.activations == weights.activations


def test_each_optimizer_needs_the_memory_of_its_own_state():
    def optimizer_bytes(name: str, stage: int, ranks: int = 4) -> float:
        tree = config(8, stage=stage).model_dump(mode="json") | {"optimizer": {"name": name}}
        found = estimated(Config.model_validate(tree), ranks)
        return found.optimizer / (4 * found.parameters)

    assert (optimizer_bytes("adamw", 0), optimizer_bytes("sgd", 0), optimizer_bytes("sgd", 2)) == (2, 1, 0.5)
    assert 0 < optimizer_bytes("adafactor", 0) < 0.2


def test_the_total_is_the_sum_of_its_lines():
    found = estimated(config(), 1)
    parts = found.weights, found.gradients, found.optimizer, found.buffers, found.activations
    assert found.total == sum(parts)
    named = dict(found.lines())
    assert named["parameters"] == f"{found.parameters / 1e6:.1f} M"
    assert named["memory"].startswith(f"{found.total / 2**30:.2f} GiB on each rank")
    cached = estimated(config(micro_batch=4), 1)
    assert cached.total == sum((*parts[:4], cached.representations, cached.activations))
    assert f"representations {cached.representations / 2**30:.2f}" in cached.lines()[2][1]


def test_a_part_that_the_objective_leaves_out_needs_no_memory():
    whole = config()
    without = whole.model_copy(update={"objective": whole.objective.model_copy(update={"summary": 0.0, "local": 0.0})})
    assert estimated(without, 1).activations < estimated(whole, 1).activations


RECIPES = {path.stem: path for path in sorted((ROOT / "launch/recipes").glob("vit_*.yaml"))}


def recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> Config:
    for variable in ("EMOCAP_DATA", "EMOCAP_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "/somewhere")
    return load(RECIPES[name])


@pytest.mark.parametrize("name", RECIPES)
def test_the_model_of_a_large_recipe_can_be_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(each.numel() for each in empty_model(recipe(name, monkeypatch)).parameters()) > 80e6


# The trace of each recipe takes 6 to 12 s. The first of these two has the most patches and the largest towers, and it
# recomputes activations; the second one does not. The traces of vit_b16 would repeat those of vit_b32 at other sizes.
@pytest.mark.parametrize("name", ["vit_l14", "vit_b32"])
def test_a_large_recipe_is_estimated_without_its_bytes_and_names_its_memory(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = recipe(name, monkeypatch)
    before = psutil.Process().memory_info().rss
    found = estimate(large, large.cluster.ranks, on_gpu=True)
    assert found.total > 2 * 2**30
    assert psutil.Process().memory_info().rss - before < found.total / 10
    assert f"{found.total / 2**30:.1f} GiB from scratch" in RECIPES[name].read_text(encoding="utf-8")


def frozen(given: Config, **model: object) -> Config:
    tree = given.model_dump(mode="json")
    tree["model"]["image"]["freeze"] = model.get("image")
    tree["model"]["freeze"] = model.get("freeze", [])
    return Config.model_validate(tree)


def test_a_frozen_tower_has_no_gradients_no_state_and_no_activations():
    free, locked = (estimated(frozen(config(8), image=image), 2) for image in (None, "all"))
    tower = free.parameters - locked.trained
    assert (locked.parameters, free.trained) == (free.parameters, free.parameters)
    assert (free.weights, free.gradients - locked.gradients) == (locked.weights, 4 * tower)
    assert free.state - locked.state == 2 * 4 * tower
    assert locked.activations < 0.7 * free.activations
    assert locked.row_flops < 0.7 * free.row_flops
    assert locked.lines()[0][1].endswith(f" M, of which {locked.trained / 1e6:.1f} M are trained")


def test_frozen_blocks_at_the_input_save_their_activations():
    free, half, locked = (estimated(frozen(config(8), image=image), 2) for image in (None, 1, "all"))
    assert locked.activations < half.activations < free.activations
    assert locked.trained < half.trained < free.trained
