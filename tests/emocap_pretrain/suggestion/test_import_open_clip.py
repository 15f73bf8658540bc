"""Tests `emocap import-openclip` beside open_clip 3.3: its flags, sizes of models, steps of an epoch, locked groups."""

import json
import shlex
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from cli_calls import called
from hypothesis import given, settings
from hypothesis import strategies as st

import emocap_torchvision
from emocap_pretrain.config.load import load
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.layouts import clip
from emocap_pretrain.suggestion.open_clip_config import translate
from emocap_pretrain.suggestion.open_clip_flags import parse
from emocap_pretrain.training.schedule import learning_rate

emocap_torchvision.install()
import open_clip  # noqa: E402 - after emocap_torchvision
from open_clip.model import CLIP  # noqa: E402
from open_clip.pretrained import get_pretrained_cfg  # noqa: E402
from open_clip_train.data import get_wds_dataset  # noqa: E402
from open_clip_train.params import parse_args  # noqa: E402
from open_clip_train.scheduler import cosine_lr  # noqa: E402

TABLE = json.loads(resources.files("emocap_pretrain.suggestion").joinpath("open_clip_models.json").read_text())
DATA = "--model ViT-B-32 --train-data tars/{00..07}.tar --train-num-samples 1000"


def config_of(words: str, tmp_path: Path, **options: Any) -> Config:
    text = translate(parse(words), **options)
    (tmp_path / "x.yaml").write_text(text)
    return load(tmp_path / "x.yaml")


def theirs(name: str) -> Any:
    """Returns open_clip's model without memory for its weights."""
    with torch.device("meta"):
        return CLIP(**open_clip.get_model_config(name))


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--model ViT-B-32",
        "--opt timm/lion --lr 1e-4",
        "--model ViT-B-16 --lr 1 --aug-cfg scale=(0.4,1.0) use_timm=True color_jitter=[0.1,0.2] --force-image-size 8 9",
        "--train-num 5 --image-mean 0.1 0.2 0.3 --report-to wandb,tensorboard --csv-separator ,",
    ],
)
def test_flags_have_the_names_defaults_and_values_of_open_clip(words: str) -> None:
    expected = {name.replace("_", "-"): value for name, value in vars(parse_args(words.split())).items()}
    found = dict(parse(words).values)
    found["aug-cfg"] = dict(found["aug-cfg"])
    assert found == expected


def test_a_command_is_translated_with_a_remark_on_each_flag_that_needs_one(tmp_path: Path) -> None:
    words = f"""#!/bin/bash
        torchrun --nproc_per_node 4 --nnodes=2 -m open_clip_train.main \\
        --model ViT-B-32 --pretrained openai --train-data "pipe:aws s3 cp s3://faces/{{000..099}}.tar -" \\
        --train-num-samples 100000 \\
        --batch-size 64 --accum-freq 2 --lr 1e-5 --wd 0.1 --beta1 0.8 --beta2 0.95 --eps 1e-7 --warmup 20 --epochs 3 \\
        --precision amp_bf16 --workers 2 --grad-clip-norm 0.5 --local-loss --gather-with-grad --lock-image \\
        --lock-image-unlocked-groups 3 --lock-text --force-image-size 256 --imagenet-val /i \\
        --report-to wandb,tensorboard --save-frequency 2 --val-data v.tar --val-frequency 4 \\
        --aug-cfg 'scale=(0.64, 1.0)' gray_scale_prob=0.2 \\
        --grad-checkpointing --seed 7 --name "my faces" --logs {tmp_path}/logs --log-every-n-steps 5"""
    config = config_of(words, tmp_path)
    assert config.data.webdataset is not None
    assert (config.data.webdataset.url, config.data.webdataset.samples) == ("s3://faces/{000..099}.tar", 100_000)
    steps = 98  # 1,024 samples of 8 processes and 2 passes; 195.3 batches of 512, filled up to whole ones of 2 workers
    assert (config.steps, config.global_batch, config.micro_batch, config.seed) == (3 * steps, 1024, 64, 7)
    assert (config.name, config.url) == ("my-faces", f"{tmp_path}/logs/my-faces")
    assert (config.model.from_, config.model.image.pixels) == ("openai/clip-vit-base-patch32", 256)
    assert (config.model.image.freeze, config.model.text.freeze, config.model.freeze) == (10, "all", ("to_text",))
    assert config.model.checkpoint_activations
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.weight_decay, optimizer.betas, optimizer.eps) == (1e-5, 0.1, (0.8, 0.95), 1e-7)
    assert (optimizer.warmup_steps, optimizer.schedule, optimizer.clip_norm) == (20, "cosine", 0.5)
    assert (config.data.crop, config.data.flip, config.data.workers) == (0.8, 0.0, 2)
    assert config.data.augment.greyscale is not None
    assert config.data.augment.greyscale.probability == 0.2
    assert (config.engine.precision, config.cluster.ranks) == ("bf16", 8)
    assert (config.checkpoint.every_steps, config.evaluation.every_checkpoints) == (2 * steps, 2)
    assert (config.tracking.wandb, config.tracking.every_steps) == ("open-clip", 5)
    assert config.objective.weights == {"global": 1.0, "summary": 0.0, "local": 0.0}
    text = translate(parse(words))
    remarks = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for name in ("local-loss, --gather-with-grad", "epochs", "imagenet-val", "val-frequency", "aug-cfg scale"):
        assert f"--{name}" in remarks
    assert "emocap pack 's3://faces/{000..099}.tar' data/my-faces/train" in remarks


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    ("samples", "batch", "workers", "processes", "accumulated"),
    [(1000, 64, 4, 1, 1), (1001, 10, 3, 4, 2), (99_999, 256, 8, 2, 3), (64, 64, 1, 1, 1)],
)
def test_an_epoch_of_tars_has_the_steps_of_open_clip(
    tmp_path: Path, samples: int, batch: int, workers: int, processes: int, accumulated: int
) -> None:
    words = f"--model ViT-B-32 --train-data {{00..63}}.tar --train-num-samples {samples} --batch-size {batch}"
    words += f" --workers {workers} --accum-freq {accumulated} --epochs 1"
    args = SimpleNamespace(**vars(parse_args(words.split())), world_size=processes, rank=0)
    loader: Any = get_wds_dataset(args, lambda image: image, is_train=True, tokenizer=lambda text: [text]).dataloader
    config = config_of(words, tmp_path, processes=processes)
    assert config.steps == loader.num_batches // accumulated
    assert config.global_batch == batch * processes * accumulated


@pytest.mark.parametrize("schedule", ["cosine", "const", "const-cooldown --epochs-cooldown 1"])
@pytest.mark.parametrize("warmup", ["", "--warmup 20"])
def test_the_warm_up_has_the_rates_of_open_clip(tmp_path: Path, schedule: str, warmup: str) -> None:
    """The default of open_clip has 10,000 steps, so a shorter run never reaches its rate."""
    config = config_of(f"{DATA} --batch-size 8 --epochs 2 --lr 0.1 --lr-scheduler {schedule} {warmup}", tmp_path)
    length = 20 if warmup else 10_000
    theirs = cosine_lr(SimpleNamespace(param_groups=[]), 0.1, length, config.steps)
    for step in range(min(length, config.steps)):
        assert learning_rate(config.optimizer, step, config.steps) == pytest.approx(theirs(step), rel=1e-9)


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-S-16-alt", "ViT-L-14-336-quickgelu", "ViT-H-14"])
def test_random_weights_have_the_sizes_of_open_clip(name: str, tmp_path: Path) -> None:
    shapes = {key: tuple(value.shape) for key, value in theirs(name).state_dict().items()}
    activation = "quick_gelu" if "quickgelu" in name else "gelu"
    expected = clip.describe(shapes, open_clip.get_model_config(name), activation=activation, where="x").settings
    model = config_of(f"--model {name} --train-data a.tar --train-num-samples 100", tmp_path).model
    assert (model.embedding, model.image.name, model.image.pixels, model.image.options) == (
        expected["embedding"],
        *(expected["image"][key] for key in ("name", "pixels", "options")),
    )
    assert model.text.architecture.model_dump() == expected["text"]["architecture"]
    assert model.text.end_id == expected["text"]["end_id"]


def test_names_on_the_hub_are_those_of_open_clip() -> None:
    for name, tags in TABLE["hub"].items():
        for tag, repository in tags.items():
            assert get_pretrained_cfg(name, tag)["hf_hub"] == f"{repository}/"


@pytest.mark.parametrize("groups", [0, 1, 2, 5, 11, 12, 20])
def test_locked_groups_are_those_of_open_clip(groups: int, tmp_path: Path) -> None:
    name = "ViT-S-32-alt"
    words = (
        f"--model {name} --train-data a.tar --train-num-samples 100 --lock-image --lock-image-unlocked-groups {groups}"
    )
    words += f" --lock-text --lock-text-unlocked-layers {groups}"
    model = config_of(words, tmp_path).model
    their = theirs(name)
    their.lock_image_tower(unlocked_groups=groups)
    their.lock_text_tower(unlocked_layers=groups)
    for tower, transformer, stem, projection in (
        (model.image, their.visual.transformer, their.visual.conv1.weight, their.visual.proj),
        (model.text, their.transformer, their.token_embedding.weight, their.text_projection),
    ):
        locked = [not next(block.parameters()).requires_grad for block in transformer.resblocks]
        freeze = tower.freeze
        assert sum(locked) == {"all": len(locked), None: 0}.get(freeze, freeze)  # pyright: ignore[reportArgumentType]
        assert stem.requires_grad == (freeze is None)
        assert ("to_image" in model.freeze, "to_text" in model.freeze) == (groups == 0, groups == 0)
        assert projection.requires_grad == (groups > 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (f"{DATA} --train-data a.tar::b.tar", {"data.webdataset": None, "data.mix.1.weight": None}),
        (f"{DATA} --train-data a.csv --epochs 1", {"steps": 15, "data.webdataset": None}),
        (f"{DATA} --siglip", {"objective.kind": "sigmoid", "model.initial_bias": -10.0, "model.initial_scale": 10.0}),
        (f"{DATA} --lr-scheduler const", {"optimizer.schedule": "constant"}),
        (
            f"{DATA} --epochs 4 --warmup 8 --lr-scheduler const-cooldown --epochs-cooldown 1 --lr-cooldown-end 1e-4",
            {"optimizer.schedule": "wsd", "optimizer.decay_steps": 16, "optimizer.final_share": 0.2},
        ),
        (f"{DATA} --skip-scheduler", {"optimizer.schedule": "constant", "optimizer.warmup_steps": 0}),
        (f"{DATA} --opt timm/lion --lr 1e-4", {"optimizer.name": "lion"}),
        (f"{DATA} --precision fp32 --torchcompile", {"engine.precision": "fp32", "engine.compile": True}),
        (f"{DATA} --pretrained own/epoch_3.pt", {"model.text.architecture.activation": "gelu"}),
        (f"{DATA} --force-quick-gelu", {"model.text.architecture.activation": "quick_gelu"}),
        (f"{DATA} --force-context-length 40", {"model.text.lengths.global_": 40}),
        (f"{DATA} --delete-previous-checkpoint", {"checkpoint.keep_last": 1, "checkpoint.keep_every": None}),
        (f"{DATA} --save-frequency 0 --epochs 2", {"checkpoint.every_steps": 32}),
    ],
)
def test_single_flags_become_settings(words: str, expected: dict[str, Any], tmp_path: Path) -> None:
    config = config_of(words, tmp_path)
    for key, value in expected.items():
        found: Any = config
        for name in key.split("."):
            found = found[int(name)] if name.isdecimal() else getattr(found, name)
        assert found == value, key


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{DATA} --bogus 3", "unrecognized arguments: --bogus 3"),
        (f"{DATA} --lr fast", "invalid float value: 'fast'"),
        (f"{DATA} --precision int4", "invalid choice: 'int4'"),
        (f"{DATA} 'x", "No closing quotation"),
        ("--model ViT-B-32 --train-num-samples 9", "--train-data is missing"),
        ("--model ViT-B-32 --train-data a.tar", "--train-num-samples is missing"),
        ("--train-data a.tar --train-num-samples 9", "--model RN50 without weights"),
        (f"{DATA} --pretrained laion9b", "known tags: openai, laion400m_e31"),
        (f"{DATA} --distill-model ViT-L-14", "--distill-model: "),
        (f"{DATA} --opt timm/novograd --lr 1", "--opt timm/novograd has no counterpart"),
        (f"{DATA} --lr -1", "optimizer.lr"),
        (f"{DATA} --batch-size 0", "--batch-size=0 must be at least 1"),
        (f"{DATA} --name '${{oc.env:HOME}}' --wandb-notes '${{oc.env:HOME}}'", "rename it"),
        (f"{DATA} --train-data 'pipe:gsutil cat gs://a/b.tar'", "pipe: URLs are not opened"),
        (f"{DATA} --aug-cfg scale=1", "is not a range"),
        (f"{DATA} --dataset-type synthetic", "no counterpart"),
    ],
)
def test_what_cannot_be_translated_is_one_line(words: str, told: str) -> None:
    done = called("import-openclip", words)
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("csv", [False, True])
def test_the_commands_in_comments_can_be_copied_however_long_they_are(csv: bool) -> None:
    places = [f"s3://a-bucket-with-a-long-name/{'folder-' * 12}{number}/faces.tar" for number in range(2)]
    kind = "--dataset-type csv --csv-separator ';'" if csv else ""
    text = translate(parse(f"{DATA} --train-data {'::'.join(places)} {kind}"))
    commands = [shlex.split(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#   emocap pack ")]
    assert [words[2] for words in commands] == places
    assert [words[-1] for words in commands] == ["semicolon" if csv else "--number-keys"] * 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["--name", "--train-data", "--aug-cfg", "--lr", "--wandb-notes", "-m", "--pretrained=a/b.pt"])
        | st.text(max_size=8)
    )
)
def test_any_words_give_a_config_or_one_line(words: list[str]) -> None:
    text = f"{DATA} {shlex.join(words)}"
    try:
        tree = yaml.safe_load(translate(parse(text)))
    except (ConfigError, ValueError) as error:
        told = str(error)
    else:
        told = ""
        assert set(tree) <= set(Config.model_fields)
    assert "\n" not in told


def test_the_command_prints_or_writes_the_config_with_or_without_quotation_marks(tmp_path: Path) -> None:
    printed = called("import-openclip", DATA)
    assert printed.exit_code == 0, printed.output
    assert called("import-openclip", *DATA.split()).stdout == printed.stdout
    assert "cluster" not in printed.stdout
    out = tmp_path / "x.yaml"
    assert called("import-openclip", DATA, "--gpus", "4", "--out", out).exit_code == 0
    assert (load(out).global_batch, load(out).cluster.ranks) == (256, 4)
    again = called("import-openclip", DATA, "--out", out)
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
