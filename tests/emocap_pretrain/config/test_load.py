import json
import subprocess
import sys
from pathlib import Path

import pytest

from emocap_pretrain.config.load import from_stored, load, unresolved
from emocap_pretrain.config.schema import Config
from emocap_pretrain.errors import ConfigError

ROOT = Path(__file__).parents[3]
TEXT = "name: t\nurl: runs/t\nsteps: 10\nglobal_batch: 8\ndata:\n  url: data/x\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(text: str, *overrides: str) -> Config:
    Path("cfg.yaml").write_text(text, encoding="utf-8")
    return load("cfg.yaml", overrides)


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(text, *overrides)
    return str(caught.value)


def test_a_minimal_file_gives_its_values_and_the_defaults(here):
    config = read(TEXT)
    assert (config.name, config.steps, config.global_batch, config.micro_batch) == ("t", 10, 8, None)
    assert config.model.text.pooling == "eos"


def test_an_override_wins_over_the_file_and_is_yaml(here):
    config = read(TEXT, "steps=3", "optimizer.betas=[0.5, 0.6]", "objective.mining={threshold: 0.9}", "data.flip=0")
    assert config.steps == 3
    assert config.optimizer.betas == (0.5, 0.6)
    assert config.objective.mining is not None
    assert config.objective.mining.threshold == 0.9
    assert config.data.flip == 0


def test_an_override_keeps_the_other_settings_of_its_section(here):
    config = read(TEXT, "data.workers=3")
    assert (config.data.workers, config.data.url) == (3, str(here / "data/x"))


@pytest.mark.parametrize("override", ["steps", "=1", "", "steps:3"])
def test_an_override_without_key_and_value_shows_the_form(here, override):
    assert refusal(TEXT, override) == (f"override {override!r} is not of the form dotted.key=value, such as steps=100.")


@pytest.mark.parametrize("value", ["1e3", "1_000", "1000.0"])
def test_a_number_on_the_command_line_reads_as_in_the_file(here, value):
    assert read(TEXT, f"steps={value}").steps == 1000
    assert read(TEXT.replace("steps: 10\n", f"steps: {value}\n")).steps == 1000


def test_an_interpolation_on_the_command_line_is_stored_as_its_text(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "s3://key@bucket")
    config = read(TEXT, "data.url=${oc.env:EMOCAP_TEST_SECRET}")
    assert config.data.url == "s3://key@bucket"
    assert config.stored()["data"]["url"] == "${oc.env:EMOCAP_TEST_SECRET}"


@pytest.mark.parametrize(
    "line",
    [
        "seed: '${oc.env:EMOCAP_TEST_SECRET}'",
        "tracking: '${oc.env:EMOCAP_TEST_SECRET}'",
        "evaluation: {templates: ['${oc.env:EMOCAP_TEST_SECRET}']}",
        "evaluation: {classes: ['${oc.env:EMOCAP_TEST_SECRET}']}",
        "objective: {mining: {threshold: 0.9, guide: '${oc.env:EMOCAP_TEST_SECRET}'}}",
    ],
)
@pytest.mark.parametrize("secret", ["hunter2", "a'b\\c"])
def test_a_refusal_does_not_show_what_an_interpolation_gave(here, monkeypatch, line, secret):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", secret)
    message = refusal(TEXT + line + "\n")
    assert "${oc.env:EMOCAP_TEST_SECRET}" in message
    assert secret not in message
    assert repr(secret)[1:-1] not in message


def test_a_tilde_is_the_home_folder(here, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = read(TEXT, "url=~/run", "tracking.uri=sqlite:///~/mlflow.db")
    assert (config.url, config.tracking.uri) == ("/home/someone/run", "sqlite:////home/someone/mlflow.db")


def test_an_override_that_is_no_yaml_is_quoted(here):
    message = refusal(TEXT, "steps=[1")
    assert message.startswith("override 'steps=[1': ")
    assert "\n" not in message


def test_a_missing_file_says_where_to_find_a_recipe(here):
    with pytest.raises(ConfigError, match=r"^cannot read the config nope.yaml: No such file.*launch/recipes\.$"):
        load("nope.yaml")


@pytest.mark.parametrize("damage", ["a: [1\n", "\tx: 1\n", "steps: 3\n", "b: ${oc.env:\n"])
def test_bad_yaml_is_one_line_with_its_place(here, damage):
    message = refusal(TEXT + damage)
    assert message.startswith("cfg.yaml: not valid YAML: ")
    assert "line 7" in message or "${oc.env:" in message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_refused(here):
    Path("cfg.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"^cfg.yaml: not valid YAML: byte 6 is not UTF-8"):
        load("cfg.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "5", "1: 2\n"])
def test_a_file_that_is_no_mapping_is_refused(here, text):
    assert refusal(text) == "cfg.yaml: a config is a mapping of settings, such as `steps: 1000`."


def test_an_empty_file_names_every_required_setting(here):
    lines = refusal("").splitlines()
    assert [line.split()[1] for line in lines] == ["name", "url", "steps", "global_batch", "data"]


def test_all_faults_are_told_at_once(here):
    assert len(refusal(TEXT + "seed: -1\nzzz: 1\n", "steps=0").splitlines()) == 3


def test_an_interpolation_is_resolved_and_stored_as_its_text(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "hunter2")
    config = read(TEXT.replace("runs/t", "'s3://${oc.env:EMOCAP_TEST_SECRET}@bucket/run'"))
    assert config.url == "s3://hunter2@bucket/run"
    assert config.stored()["url"] == "s3://${oc.env:EMOCAP_TEST_SECRET}@bucket/run"


@pytest.mark.parametrize(
    "lines",
    [
        "tracking: {uri: 'https://u:${oc.env:EMOCAP_TEST_SECRET}@host'}",
        "evaluation: {templates: ['${oc.env:EMOCAP_TEST_SECRET} {}', 'plain {}']}",
        "evaluation: {classes: {'a.b': ['x', '${oc.env:EMOCAP_TEST_SECRET}']}}",
        "model: {image: {options: {'a.b': {c: [1, '${oc.env:EMOCAP_TEST_SECRET}']}}}}",
        "model: {text: {tokenizer: '${oc.env:EMOCAP_TEST_SECRET}'}}",
    ],
)
def test_a_secret_never_comes_into_what_is_stored(here, monkeypatch, lines):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "hunter2")
    config = read(TEXT + lines)
    assert "hunter2" in repr(config)
    stored = json.dumps(config.stored())
    assert "hunter2" not in stored
    assert "${oc.env:EMOCAP_TEST_SECRET}" in stored


def test_a_secret_of_the_command_line_is_not_stored_either(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "hunter2")
    config = read(TEXT, "tracking.uri=https://${oc.env:EMOCAP_TEST_SECRET}@host")
    assert config.tracking.uri == "https://hunter2@host"
    assert "hunter2" not in json.dumps(config.stored())


def test_a_variable_that_is_not_set_is_named(here, monkeypatch):
    monkeypatch.delenv("EMOCAP_TEST_SECRET", raising=False)
    message = refusal(TEXT.replace("runs/t", "${oc.env:EMOCAP_TEST_SECRET}"))
    assert message.startswith("cfg.yaml: ")
    assert "EMOCAP_TEST_SECRET" in message
    assert "\n" not in message


def test_what_is_stored_comes_back_as_the_same_run(here):
    config = read(TEXT, "objective.global=0.25", "model.text.lengths.global=9", "evaluation.classes={a: [b, c]}")
    assert from_stored(json.loads(json.dumps(config.stored()))) == config


def test_a_stored_interpolation_is_never_resolved(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "first")
    stored = read(TEXT, "evaluation.templates=['${oc.env:EMOCAP_TEST_SECRET} {}']").stored()
    restored = from_stored(stored)
    assert restored.evaluation.templates == ("${oc.env:EMOCAP_TEST_SECRET} {}",)
    assert restored.stored() == stored
    assert unresolved(stored) == [("evaluation.templates.0", "${oc.env:EMOCAP_TEST_SECRET} {}")]


def test_a_stored_path_is_not_looked_up(here):
    Path("encoder").mkdir()
    stored = read(TEXT).stored()
    stored["url"], stored["model"]["text"]["pretrained"] = "~/run", "encoder"
    restored = from_stored(stored)
    assert (restored.url, restored.model.text.pretrained) == ("~/run", "encoder")


def test_relative_paths_become_absolute_and_urls_stay(here):
    config = read(TEXT, "tracking.uri=sqlite:///runs/m.db", "tracking.artifacts=s3://bucket/a", "evaluation.url=e")
    assert config.url == str(here / "runs/t")
    assert config.data.url == str(here / "data/x")
    assert config.evaluation.url == str(here / "e")
    assert config.tracking.uri == f"sqlite:///{here}/runs/m.db"
    assert config.tracking.artifacts == "s3://bucket/a"


def test_defaults_that_are_paths_become_absolute_too(here):
    config = read(TEXT)
    assert config.tracking.uri == f"sqlite:///{here}/runs/mlflow.db"
    assert config.tracking.artifacts == str(here / "runs/artifacts")


def test_an_absolute_database_stays_where_it_is(here):
    assert read(TEXT, "tracking.uri=sqlite:////var/m.db").tracking.uri == "sqlite:////var/m.db"


def test_a_pretrained_folder_becomes_absolute_and_a_hub_name_stays(here):
    (here / "weights").mkdir()
    config = read(TEXT, "model.text.pretrained=weights", "model.text.tokenizer=owner/name")
    assert config.model.text.pretrained == str(here / "weights")
    assert config.model.text.tokenizer == "owner/name"


@pytest.mark.parametrize("recipe", sorted((ROOT / "launch/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(recipe, monkeypatch):
    for variable in ("EMOCAP_DATA", "EMOCAP_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "/somewhere")
    assert load(recipe).steps > 0


def test_reading_a_config_needs_neither_torch_nor_a_framework():
    heavy = "torch", "numpy", "transformers", "timm", "ray", "deepspeed", "mlflow"
    program = f"import sys, emocap_pretrain.config.load; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
