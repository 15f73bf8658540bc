import json
import subprocess
import sys
from pathlib import Path

import pytest
from pretrain_fakes import changed
from pydantic import ValidationError

from emocap_pretrain.config.__main__ import main
from emocap_pretrain.config.data import DataConfig
from emocap_pretrain.config.objective import ObjectiveConfig
from emocap_pretrain.config.schema import Config

ROOT = Path(__file__).parents[3]


def config() -> Config:
    return Config(name="t", url="/r", steps=1, global_batch=2, data=DataConfig(url="/d"))


def resolved(schema: dict, *keys: str) -> dict:
    """Returns the node of a JSON schema at these properties; follows references."""
    node = schema
    for key in keys:
        node = node["properties"][key]
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node


def test_the_command_prints_a_json_schema_of_the_settings():
    command = [sys.executable, "-m", "emocap_pretrain.config", "--schema"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    schema = json.loads(done.stdout)
    assert set(schema["required"]) == {"name", "url", "steps", "global_batch", "data"}
    assert schema["additionalProperties"] is False
    assert resolved(schema, "steps")["minimum"] == 0
    assert resolved(schema, "engine", "precision")["enum"] == ["fp32", "bf16", "fp16"]
    assert "global" in resolved(schema, "objective")["properties"]
    assert "whole" not in resolved(schema, "objective")["properties"]


def test_every_section_of_the_schema_forbids_unknown_keys():
    definitions = Config.model_json_schema(by_alias=True)["$defs"].values()
    sections = [definition for definition in definitions if "properties" in definition]
    assert len(sections) > 10
    assert all(section["additionalProperties"] is False for section in sections)


def test_the_schema_is_the_same_in_every_folder(tmp_path):
    command = [sys.executable, "-m", "emocap_pretrain.config", "--schema"]
    here, there = (
        subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env={"PYTHONPATH": str(ROOT)})
        for folder in (ROOT, tmp_path)
    )
    assert here.stdout == there.stdout


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--schemas"], 2), (["--help"], 0)])
def test_another_argument_shows_the_usage(capsys, arguments, code):
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("usage: python -m emocap_pretrain.config --schema")
    assert shown.out == ""


def test_a_config_cannot_be_changed():
    run = config()
    with pytest.raises(ValidationError, match="frozen"):
        run.steps = 2
    with pytest.raises(ValidationError, match="frozen"):
        run.data.workers = 2


def test_equal_settings_are_equal_configs():
    assert config() == config()
    assert config() != config().model_copy(update={"seed": 1})


def test_stored_settings_are_json_and_a_copy():
    run = config()
    stored = run.stored()
    assert json.loads(json.dumps(stored)) == stored
    stored["data"]["workers"] = 99
    assert run.stored()["data"]["workers"] != 99


def test_the_caption_part_global_has_this_name_in_stored_settings():
    assert config().stored()["objective"]["global"] == 0.5
    assert config().stored()["model"]["text"]["lengths"]["global"] == 48
    assert ObjectiveConfig.model_validate({"global": 0.25}).global_ == 0.25


def test_interpolation_texts_are_not_shared_between_configs():
    first = config()
    second = first.with_interpolations({("url",): "${oc.env:X}"})
    assert second.stored()["url"] == "${oc.env:X}"
    assert first.stored()["url"] == "/r"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("postgresql://u:p/x@db/mlflow", "postgresql://***@db/mlflow"),
        ("http://u:p@tracker:5000", "http://***@tracker:5000"),
        ("https://tracker/api?token=t", "https://tracker/api?***"),
        ("s3://bucket/anna@example.org/faces", "s3://bucket/anna@example.org/faces"),
    ],
)
def test_stored_settings_hold_no_login_of_a_url(uri, shown):
    run = Config.model_validate(config().stored() | {"tracking": {"uri": uri}})
    assert run.tracking.uri == uri
    assert run.stored()["tracking"]["uri"] == shown


def test_a_kind_for_an_unknown_caption_part_is_refused():
    with pytest.raises(
        ValueError, match=r"kind_by_part: topic is not a part of a caption; the parts are global, summary"
    ):
        ObjectiveConfig.model_validate({"kind_by_part": {"topic": "sigmoid"}})


def test_a_patch_mask_together_with_patch_dropout_is_refused(tiny_config):
    with pytest.raises(ValueError, match=r"patch_mask needs the position of each patch.* set one of the two"):
        changed(tiny_config, objective__patch_mask={"contrast": 8}, model__image__patch_dropout=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"checkpoint__keep_best": "a/b"},
            "checkpoint.keep_best=a/b needs checkpoints that are evaluated during",
        ),
        ({"evaluation__stop_after": 2}, "evaluation.stop_after needs a score that has to improve"),
        ({"checkpoint__keep_best": "no score"}, "String should match pattern"),
    ],
)
def test_a_best_checkpoint_needs_evaluations_during_training(tiny_config, changes, message):
    with pytest.raises(ValidationError) as refused:
        changed(tiny_config, **changes)
    assert message in str(refused.value)
    whole = {"checkpoint__keep_best": "a/b", "evaluation__stop_after": 2, "evaluation__every_checkpoints": 1}
    assert changed(tiny_config, **whole).checkpoint.keep_best == "a/b"
