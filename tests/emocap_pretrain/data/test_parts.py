"""Tests docs/extend/part.md: a new part needs only a `Part`, a weight and a length; all other code handles it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from emocap_shards.sample import Caption

from emocap_pretrain.config.model import PartLengthsConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data import parts
from emocap_pretrain.data.parts import PARTS, Part, active_parts
from emocap_pretrain.errors import ConfigError

HERE = Path(__file__).parents[1]
PACKAGE = HERE.parents[1] / "emocap_pretrain"
# The new parts: their names, what they compare with, and the function that gives their texts.
NEW = {"xyzzy": ("patches", "_local"), "plugh": ("image", "_summary")}
# The lines that a new part needs, each after an existing one: its definition, its weight and its length.
ADDED = {
    "data/parts.py": ("PARTS: tuple[Part, ...] = (", '    Part("{name}", {texts}, "{kind}"),'),
    "config/objective.py": (
        '    local: PartWeight = Field(default=1.0, description="Weight of the loss of patches and local sentences.")',
        "    {name}: PartWeight = 0.25",
    ),
    "config/model.py": (
        '    local: Length = Field(default=40, description="Most tokens of a local sentence.")',
        "    {name}: Length = 12",
    ),
}
PROGRAM = """
import json, sys
import torch
import pretrain_fakes
from emocap_shards.store import open_store
from emocap_pretrain.config.schema import Config
from emocap_pretrain.dry_run.workload import Workload
from emocap_pretrain.training.loop import pretrain
from emocap_pretrain.dry_run.memory import estimate
from emocap_pretrain.dry_run.plan import RunPlan
from mlflow.tracking import MlflowClient

torch.set_num_threads(1)
pretrain_fakes.stand_alone()
config = Config.model_validate_json(sys.argv[1])

def run(name, *stops):
    run = config.model_copy(update={"name": name, "url": f"{config.url}-{name}", "steps": 4})
    for stop in stops:
        pretrain(run, pretrain_fakes.FakeRuntime(stop_after=stop))
    run_id = json.loads(open_store(run.url).read("run.json"))["run_id"]
    history = MlflowClient(run.tracking.uri).get_metric_history
    return [[p.value for p in history(run_id, key)] for key in ("loss", "xyzzy/loss", "plugh/loss")]

def without(name):
    objective = config.objective.model_copy(update={name: 0.0})
    return config.model_copy(update={"objective": objective})

def work(config):
    return Workload.of(config, 8, parameters=1, trained=1, patches=4, half=False)

compared = [config, without("xyzzy"), without("plugh")]
print(json.dumps({
    "unbroken": run("unbroken", None),
    "resumed": run("resumed", 1, 2, None),
    "bytes": [estimate(each, 1, on_gpu=False).activations for each in compared],
    "texts": [work(each).texts for each in compared],
    "flops": [work(each).loss_flops(2) for each in compared],
    "plan": RunPlan.of(config, 1, on_gpu=False).text(),
}))
"""


def test_new_parts_of_both_kinds_train_resume_and_are_estimated_and_forecast(
    tiny_config: Config, tmp_path: Path
) -> None:
    copy = tmp_path / "package" / "emocap_pretrain"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for file, (after, line) in ADDED.items():
        text = (copy / file).read_text()
        assert text.count(f"{after}\n") == 1
        added = "\n".join(line.format(name=name, kind=kind, texts=texts) for name, (kind, texts) in NEW.items())
        (copy / file).write_text(text.replace(f"{after}\n", f"{after}\n{added}\n"))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tiny_config.model_dump_json(by_alias=True)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(copy.parent), str(HERE)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["resumed"] == printed["unbroken"]
    assert [len(values) for values in printed["unbroken"]] == [4, 4, 4]
    for values in printed["unbroken"]:
        assert len(set(values)) == 4, "the loss changes as the part is trained"
    for name in ("bytes", "texts", "flops"):
        assert printed[name][0] > max(printed[name][1:]), name
    assert "\nlosses          xyzzy, plugh, global, summary, local: chunked" in printed["plan"]


def test_the_page_on_adding_a_part_shows_the_lines_that_the_test_adds() -> None:
    page = (PACKAGE.parent / "docs" / "extend" / "part.md").read_text()
    for _, line in ADDED.values():
        assert line.format(name="xyzzy", kind="patches", texts="_local").strip() in page


def test_every_part_has_a_weight_and_a_length() -> None:
    names = {part.name for part in PARTS}
    assert ObjectiveConfig.model_validate({}).weights.keys() == names
    assert PartLengthsConfig.model_validate({}).by_part.keys() == names


def test_a_caption_without_a_text_for_the_image_gives_its_global_sentence_in_any_order_of_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parts, "PARTS", PARTS[::-1])
    summary = next(part for part in PARTS if part.name == "summary")
    assert summary.texts_to_encode(Caption("whole", ("eyes", "mouth"), "")) == ("whole",)


def test_a_part_without_a_weight_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PARTS", (*PARTS, Part("xyzzy", PARTS[0].texts, "image")))
    with pytest.raises(ConfigError, match=r"local, xyzzy .*give every part a weight"):
        active_parts(ObjectiveConfig.model_validate({}).weights)


def test_a_part_without_a_length_is_refused(tiny_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"global": 0.5, "summary": 0.5, "local": 1.0, "xyzzy": 0.5}
    monkeypatch.setattr(ObjectiveConfig, "weights", property(lambda _: weights))
    with pytest.raises(ValueError, match=r"model.text.lengths: give xyzzy a length"):
        Config.model_validate(tiny_config.model_dump(by_alias=True))
