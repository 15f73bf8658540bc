import json
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from emocap_shards.mask import masked

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


def test_an_override_that_is_not_yaml_is_quoted_in_the_error(here):
    message = refusal(TEXT, "steps=[1")
    assert message.startswith("override 'steps=[1': ")
    assert "\n" not in message


def test_a_missing_file_says_where_to_find_a_recipe(here):
    with pytest.raises(ConfigError, match=r"^cannot read the config nope.yaml: No such file.*launch/recipes\.$"):
        load("nope.yaml")


@pytest.mark.parametrize("damage", ["a: [1\n", "\tx: 1\n", "steps: 3\n", "b: ${oc.env:\n"])
def test_bad_yaml_is_an_error_in_one_line_with_its_place(here, damage):
    message = refusal(TEXT + damage)
    assert message.startswith("cfg.yaml: not valid YAML: ")
    assert "line 7" in message or "${oc.env:" in message
    assert "\n" not in message


def test_a_file_that_is_not_utf8_is_refused(here):
    Path("cfg.yaml").write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match=r"^cfg.yaml: not valid YAML: byte 6 is not UTF-8"):
        load("cfg.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "5", "1: 2\n"])
def test_a_file_that_is_not_a_mapping_is_refused(here, text):
    assert refusal(text) == "cfg.yaml: a config is a mapping of settings, such as `steps: 1000`."


def test_the_error_for_an_empty_file_names_every_required_setting(here):
    lines = refusal("").splitlines()
    assert [line.split()[1] for line in lines] == ["name", "url", "steps", "global_batch", "data"]


def test_all_errors_are_reported_at_once(here):
    assert len(refusal(TEXT + "seed: -1\nzzz: 1\n", "steps=-1").splitlines()) == 3


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
def test_stored_settings_hold_no_secret(here, monkeypatch, lines):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "hunter2")
    config = read(TEXT + lines)
    assert "hunter2" in repr(config)
    stored = json.dumps(config.stored())
    assert "hunter2" not in stored
    assert "${oc.env:EMOCAP_TEST_SECRET}" in stored


def test_a_secret_of_the_command_line_is_not_stored(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_SECRET", "hunter2")
    config = read(TEXT, "tracking.uri=https://${oc.env:EMOCAP_TEST_SECRET}@host")
    assert config.tracking.uri == "https://hunter2@host"
    assert "hunter2" not in json.dumps(config.stored())


def test_the_error_for_an_unset_variable_names_it(here, monkeypatch):
    monkeypatch.delenv("EMOCAP_TEST_SECRET", raising=False)
    message = refusal(TEXT.replace("runs/t", "${oc.env:EMOCAP_TEST_SECRET}"))
    assert message.startswith("cfg.yaml: ")
    assert "EMOCAP_TEST_SECRET" in message
    assert "\n" not in message


def test_stored_settings_are_read_back_as_the_same_config(here):
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


def test_relative_paths_become_absolute_and_urls_do_not_change(here):
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


def test_an_absolute_path_of_a_database_does_not_change(here):
    assert read(TEXT, "tracking.uri=sqlite:////var/m.db").tracking.uri == "sqlite:////var/m.db"


def test_a_pretrained_folder_becomes_absolute_and_a_hub_name_does_not_change(here):
    (here / "weights").mkdir()
    config = read(TEXT, "model.text.pretrained=weights", "model.text.tokenizer=owner/name")
    assert config.model.text.pretrained == str(here / "weights")
    assert config.model.text.tokenizer == "owner/name"


def test_a_file_of_a_package_is_stored_by_the_name_of_the_package(here):
    name = "package:weights/tower.pth"
    (here / name).mkdir(parents=True)
    assert read(TEXT, f"model.image.pretrained={name}").stored()["model"]["image"]["pretrained"] == name


@pytest.mark.parametrize("recipe", sorted((ROOT / "launch/recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_loads(recipe, monkeypatch):
    for variable in ("EMOCAP_DATA", "EMOCAP_RUNS", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, "/somewhere")
    assert load(recipe).steps > 0


@pytest.mark.parametrize("name", ["vit_b32", "vit_b16", "vit_l14"])
def test_the_sections_that_a_recipe_gives_for_a_start_from_clip_load_too(name, tmp_path):
    text = (ROOT / f"launch/recipes/{name}.yaml").read_text()
    other = yaml.safe_load("".join(f"{line[4:]}\n" for line in text.splitlines() if line.startswith("#   ")))
    assert other["model"]["from"].startswith("openai/clip-vit-")
    (tmp_path / "clip.yaml").write_text(yaml.safe_dump(yaml.safe_load(text) | other))
    assert load(tmp_path / "clip.yaml").model.from_ == other["model"]["from"]


def test_reading_a_config_needs_neither_torch_nor_a_framework():
    heavy = "torch", "numpy", "transformers", "timm", "ray", "deepspeed", "mlflow"
    program = f"import sys, emocap_pretrain.config.load; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


BOMB = "".join(f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]\n" for n in range(1, 12))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (f"a0: &a0 [x, x]\n{BOMB}", r"with its aliases it has [\d,]+ values, and at most 20,000 are allowed"),
        ("a: &a [*a]\n", "nested more than 40 levels deep|found undefined alias|found unconstructable"),
        (f"a: {'[' * 100_000}\n", "nested too deeply"),
        (f"a: {'[' * 60}{']' * 60}\n", "line 7 is nested more than 40 levels deep"),
        (f"{'? ' * 50_000}\n", "nested too deeply"),
        (f"steps: {'9' * 200_000}\n", "line 6 has a number of 200,000 digits"),
        (f"seed: 0x{'f' * 100_000}\n", "has a number of 100,002 digits"),
        (f"seed: 1{':1' * 50_000}\n", "has a number of 100,001 digits"),
        ("seed: 1e400\n", "seed=inf|seed: .*finite"),
        ("optimizer: {lr: 1e400}\n", "optimizer.lr"),
        ("model: {image: {options: {depth: .inf}}}\n", "model.image.options"),
        ("x: !!python/object/apply:os.system ['touch mark']\n", "could not determine a constructor"),
        ("x: !!python/name:os.system ''\n", "could not determine a constructor"),
        ("evaluation: {label: '${evaluation.label}'}\n", "evaluation.label|ecursi"),
        ("evaluation: {label: '" + "${steps}" * 33 + "'}\n", "33 interpolations .*; at most 32 are allowed"),
        (f"# {'x' * (300 << 10)}\n", "a config of more than 256 KiB"),
    ],
)
def test_a_document_that_would_use_much_time_or_memory_is_refused_in_one_line(here, lines, message):
    text = TEXT.replace("steps: 10\n", "") if lines.startswith("steps") else TEXT
    found = refusal(text + lines)
    assert re.search(message, found), found
    assert found.count("\n") == 0 or "bomb" in found
    assert len(found) < 2000
    assert not Path("mark").exists()


def test_an_endless_config_is_refused(here):
    with pytest.raises(ConfigError, match="a config of more than 256 KiB"):
        load("/dev/zero")


@pytest.mark.parametrize("override", [f"seed={'9' * 5000}", f"seed={'[' * 5000}", f"{'a.' * 5000}b=1"])
def test_a_huge_override_is_refused(here, override):
    assert refusal(TEXT, override)


def test_anchors_of_a_usual_size_work(here):
    config = read(
        TEXT
        + "model: {text: {lengths: &l {global: 9, local: 9, summary: 9}}}\nevaluation: {classes: {a: &w [b], c: *w}}\n"
    )
    assert config.evaluation.classes == {"a": ("b",), "c": ("b",)}


def test_values_of_the_environment_are_masked_after_loading_but_paths_are_not(here, monkeypatch):
    monkeypatch.setenv("EMOCAP_TEST_PLAIN", "sesame-of-the-config")
    monkeypatch.setenv("EMOCAP_TEST_PLACE", str(here))
    config = read(
        TEXT.replace("runs/t", "s3://bucket/${oc.env:EMOCAP_TEST_PLAIN}"), "data.url=${oc.env:EMOCAP_TEST_PLACE}/x"
    )
    assert config.secrets == ("sesame-of-the-config",)
    assert masked(f"sesame-of-the-config in {here}") == f"*** in {here}"
    assert pickle.loads(pickle.dumps(config)).secrets == config.secrets
