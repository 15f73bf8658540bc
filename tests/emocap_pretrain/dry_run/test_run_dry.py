import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml
from emocap_shards.store import open_store
from optimizer_cases import STAGES, with_optimizer
from pretrain_fakes import changed
from safetensors.torch import save_file
from typer import Typer
from typer.testing import CliRunner

from emocap_pretrain.config.schema import Config
from emocap_pretrain.model.timm_image import TimmImageTower
from emocap_pretrain.run import command
from emocap_pretrain.run_folder.folder import RunFolder

app = Typer()
app.command()(command)


@pytest.fixture
def recipe(tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("RANK", raising=False)
    file = tmp_path / "cfg.yaml"
    file.write_text(yaml.safe_dump(tiny_config.stored()), encoding="utf-8")
    return str(file)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_a_dry_run_prints_the_plan_and_does_nothing(recipe, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    done = run(recipe, "steps=7", "cluster.ranks=2", "--dry-run")
    assert (done.exit_code, done.stderr) == (0, "")
    assert "global 8 over 2 ranks, 4 rows each in one pass" in done.stdout
    assert "7 steps" in done.stdout
    assert "optimizer:" not in done.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_dry_run_ends_with_the_resolved_config(recipe, tiny_config):
    done = run(recipe, "steps=7", "cluster.ranks=2", "--dry-run", "--full")
    plan, _, resolved = done.stdout.partition("\n# the resolved config\n")
    assert "global 8 over 2 ranks" in plan
    assert yaml.safe_load(resolved) == tiny_config.stored() | {
        "steps": 7,
        "cluster": tiny_config.stored()["cluster"] | {"ranks": 2},
    }


def test_without_a_number_of_ranks_a_machine_without_gpu_has_two(recipe):
    done = run(recipe, "cluster.ranks=auto", "--dry-run")
    assert "2 ranks, one CPU process each" in done.stdout


def test_a_wrong_value_ends_a_dry_run_with_code_2_and_one_line(recipe):
    done = run(recipe, "steps=-1", "--dry-run")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("this will not run: command line: steps=-1: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "stage"), list(product(STAGES, range(4))))
def test_every_pair_of_optimizer_and_stage_is_planned_or_refused_in_one_line(
    recipe, tiny_config, tmp_path, name, stage
):
    config = changed(with_optimizer(tiny_config, name), engine__zero_stage=stage, evaluation__url=None)
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump(config.stored()), encoding="utf-8")
    done = run(str(file), "cluster.ranks=2", "--dry-run")
    if stage in STAGES[name]:
        assert (done.exit_code, done.stderr) == (0, "")
        assert "global 8 over 2 ranks" in done.stdout
    else:
        assert done.exit_code == 2
        assert done.stderr == (
            f"this will not run: optimizer.name={name} needs whole parameters, and engine.zero_stage={stage} divides "
            "them: set engine.zero_stage=0, or another optimizer.name.\n"
        )


def test_more_ranks_than_samples_end_a_dry_run_with_code_2(recipe):
    done = run(recipe, "cluster.ranks=9", "--dry-run")
    assert done.exit_code == 2
    assert "set global_batch to at least 9" in done.stderr


@pytest.mark.parametrize(
    "override",
    ["model.image.name=vit_tinny", "model.text.architecture.heads=5", "model.image.options.patch_size=64"],
)
def test_a_model_that_cannot_be_built_ends_a_dry_run_with_code_2(recipe, override):
    done = run(recipe, override, "--dry-run")
    assert done.exit_code == 2
    assert done.stderr.startswith("this will not run: model.")
    assert done.stderr.count("\n") == 1


def test_everything_that_keeps_a_run_from_starting_is_a_line_each_after_the_plan(recipe, tmp_path):
    done = run(recipe, "data.url=nowhere", "evaluation.label=mood", "global_batch=1", "cluster.ranks=1", "--dry-run")
    assert done.exit_code == 2
    assert "global 1 over 1 rank," in done.stdout
    lines = done.stderr.splitlines()
    assert [line.partition("this will not run: ")[2].partition(":")[0] for line in lines] == [
        "data.url",
        "global_batch=1",
        "evaluation.label=mood",
    ]


def test_the_module_is_a_command_whose_help_is_quick():
    program = "import sys; from emocap_pretrain.run import main; sys.argv[1:] = ['--help']\n"
    program += "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "--dry-run" in done.stdout
    assert done.stdout.endswith("False\n")


def test_weights_that_do_not_fill_the_tower_end_a_dry_run_with_code_2_and_their_names(recipe, tiny_config, tmp_path):
    settings = tiny_config.model.image
    file = str(tmp_path / "weights.safetensors")
    save_file(dict(TimmImageTower(settings).backbone.state_dict()), file)
    override = f"model.image.pretrained={file}"
    done = run(recipe, override, "model.image.options.depth=2", "--dry-run")
    assert done.exit_code == 2
    assert "12 missing (blocks.1.attn.proj.bias, " in done.stderr
    assert done.stderr.count("\n") == 1
    fits = run(recipe, override, "model.image.pixels=32", "--dry-run")
    assert fits.exit_code == 0
    assert fits.stdout.count("note            model.image.pretrained: 1 resized: pos_embed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [{}, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}])
def test_a_run_that_cannot_start_is_refused_before_ray_and_before_the_ranks_join(
    recipe, tiny_config, monkeypatch, launcher
):
    RunFolder(open_store(tiny_config.url)).write_run(tiny_config, "abc")
    before = {entry.path for entry in open_store(tiny_config.url).list()}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    program = f"import sys; from emocap_pretrain.run import main; sys.argv[1:] = [{recipe!r}, 'seed=7']\n"
    program += "try: main()\nexcept SystemExit as end: print(end.code, 'ray' in sys.modules)\n"
    program += "import torch; print(torch.distributed.is_initialized())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\nFalse\n"
    assert done.stderr.startswith(
        f"error: {'rank 0: ' if launcher else ''}the run at {tiny_config.url} was started with"
    )
    assert done.stderr.count("\n") == 1
    assert {entry.path for entry in open_store(tiny_config.url).list()} == before
