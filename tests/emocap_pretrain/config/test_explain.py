from pathlib import Path

import pytest

from emocap_pretrain.config.explain import Origin
from emocap_pretrain.config.load import load
from emocap_pretrain.errors import ConfigError

TEXT = "name: t\nurl: runs/t\nsteps: 10\nglobal_batch: 8\ndata:\n  url: data/x\n"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(text: str, *overrides: str) -> str:
    Path("cfg.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load("cfg.yaml", overrides)
    return str(caught.value)


def test_the_error_for_a_misspelt_key_has_its_line_and_the_nearest_key():
    assert refusal(TEXT + "objectve:\n  global: 1\n") == "cfg.yaml:7: unknown key objectve; did you mean objective?"


def test_a_misspelt_key_of_a_section_is_compared_with_that_section():
    text = TEXT + "model:\n  text:\n    # a comment\n    poling: cls\n"
    assert refusal(text) == "cfg.yaml:10: unknown key model.text.poling; did you mean pooling?"


def test_the_error_for_a_key_unlike_all_others_lists_the_known_keys():
    message = refusal(TEXT + "checkpoint:\n  zzz: 1\n")
    known = "every_steps, keep_last, keep_every, keep_best"
    assert message == f"cfg.yaml:8: unknown key checkpoint.zzz; known here: {known}."


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("objective", "label_smoothing", "; known here: "),
        ("cluster", "num_ranks", "; did you mean ranks?"),
        ("optimizer", "warmup", "; did you mean warmup_steps?"),
        ("optimizer", "learning_rate", "; known here: name, lr, "),
        ("optimizer", "clipnorm", "; did you mean clip_norm?"),
        ("checkpoint", "keep", "; did you mean keep_last?"),
    ],
)
def test_a_hint_is_given_only_where_a_key_is_close(section, key, hint):
    assert hint in refusal(f"{TEXT}{section}: {{{key}: 1}}\n")


@pytest.mark.parametrize(
    ("override", "rule"),
    [
        ("cluster.ranks=x", "cluster.ranks='x': it should be a whole number; or it should be 'auto'."),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: it should be a list."),
        ("optimizer.betas=[0.9,0.9,0.9]", "optimizer.betas=[0.9, 0.9, 0.9]: it should be a list of 2 at most."),
        ("evaluation.classes={}", "evaluation.classes={}: it must not be empty; give 1 or more."),
        ("evaluation.templates=[a]", "evaluation.templates.0: 'a' has no {} to be replaced by the words for a class."),
        ("data.url=5", "data.url=5: it should be a text; put it into quotes."),
        ("data.drop_last=7", "data.drop_last=7: it should be true or false."),
        ("name=a b", "name='a b': it should be of the form ^[A-Za-z0-9][A-Za-z0-9_.-]*$."),
    ],
)
def test_an_error_is_one_line_with_the_rule_in_terms_of_yaml(override, rule):
    assert refusal(TEXT, override) == f"command line: {rule}"


def test_a_key_that_is_given_twice_on_the_command_line_is_refused():
    message = refusal(TEXT, "optimizer.lr=1", "steps=2", "optimizer.lr=2")
    assert message == (
        "command line: optimizer.lr is given twice, as 'optimizer.lr=1' and 'optimizer.lr=2': give it once."
    )


def test_classes_are_named_by_texts_and_described_by_a_text_or_a_list():
    evaluation = "evaluation: {classes: {0: joy, 1.0: [fear, panic], other: [x]}}\n"
    Path("cfg.yaml").write_text(TEXT + evaluation, encoding="utf-8")
    assert load("cfg.yaml").evaluation.classes == {"0": ("joy",), "1": ("fear", "panic"), "other": ("x",)}
    assert load("cfg.yaml", ["evaluation.classes={2: joy}"]).evaluation.classes == {"2": ("joy",)}
    assert "the class '0' is given twice" in refusal(TEXT + "evaluation: {classes: {0: joy, '0': fear}}\n")
    assert "YAML reads a class as False" in refusal(TEXT + "evaluation: {classes: {no: [neutral]}}\n")


def test_keys_of_a_section_that_may_be_null_are_known():
    message = refusal(TEXT + "objective: {mining: {threshhold: 0.9}}\n")
    assert "unknown key objective.mining.threshhold; did you mean threshold?" in message


def test_a_missing_space_after_a_colon_is_named():
    message = refusal(TEXT, "model.image.lora={rank:8}")
    assert message == "command line: unknown key model.image.lora.rank:8; write a space after the colon: rank: 8"


def test_the_weight_of_a_part_has_only_the_name_of_the_part():
    message = refusal(TEXT + "objective: {globl: 1}\n")
    assert message == "cfg.yaml:7: unknown key objective.globl; did you mean global?"
    assert "unknown key objective.whole" in refusal(TEXT + "objective: {whole: 1}\n")


def test_the_error_for_a_missing_key_has_its_description():
    text = TEXT.replace("  url: data/x", "  mix:\n    - weight: 1")
    assert refusal(text) == "cfg.yaml:6: data.mix.0.url is required (Folder or URL of a packed dataset)."


@pytest.mark.parametrize("data", ["  workers: 1", "  url: data/x\n  mix: [{url: data/y}]"])
def test_data_needs_one_dataset_or_a_mixture_or_tars(data):
    rule = (
        "data: give either url, the one dataset, or mix, a list of {url, weight}, or webdataset, the tars of another "
        "program as {url, samples}."
    )
    assert refusal(TEXT.replace("  url: data/x", data)) == f"cfg.yaml:5: {rule}"


def test_the_error_for_a_missing_top_level_key_names_the_file():
    message = refusal(TEXT.replace("global_batch: 8\n", ""))
    assert message.startswith("cfg.yaml: global_batch is required (Samples of one step over all ranks")


def test_the_error_for_a_value_of_the_command_line_names_it():
    assert refusal(TEXT, "steps=-1") == (
        "command line: steps=-1: it should be greater than or equal to 0; the nearest that works is 0."
    )


def test_the_error_for_an_unknown_key_of_the_command_line_names_it():
    assert refusal(TEXT, "data.worker=1") == "command line: unknown key data.worker; did you mean workers?"


def test_the_error_for_a_value_in_a_section_of_the_command_line_names_it():
    assert refusal(TEXT, "engine={zero_stage: 7}").startswith("command line: engine.zero_stage=7: ")


def test_the_error_for_an_override_below_a_plain_value_names_the_command_line():
    assert refusal(TEXT, "steps.x=1").startswith("command line: steps=")


def test_the_error_for_a_value_of_the_file_has_its_line_also_with_overrides():
    assert refusal(TEXT + "seed: -1\n", "data.workers=2").startswith("cfg.yaml:7: seed=-1: ")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("seed: -1", "seed=-1: it should be greater than or equal to 0; the nearest that works is 0."),
        ("seed: 2147483648", "seed=2147483648: it should be less than 2147483648."),
        ("micro_batch: 0", "micro_batch=0: it should be greater than or equal to 1; the nearest that works is 1."),
        ("micro_batch: 1.5", "micro_batch=1.5: it should be a whole number."),
        ("optimizer: {lr: 0}", "optimizer.lr=0: it should be greater than 0."),
        ("optimizer: {lr: .nan}", "optimizer.lr=nan: it should be a finite number."),
        ("optimizer: {lr: .inf}", "optimizer.lr=inf: it should be a finite number."),
        ("optimizer: {lr: quick}", "optimizer.lr='quick': it should be a number."),
        ("optimizer: {betas: [0.9, 1.0]}", "optimizer.betas.1=1.0: it should be less than 1."),
        ("optimizer: {betas: [0.9]}", "optimizer.betas.1 is required."),
        (
            "optimizer: {name: sgd, eps: 1.0e-8}",
            "eps belongs to name=adamw, lamb, muon, schedule_free, and name is sgd: leave it out.",
        ),
        ("optimizer: {sgd: {momentum: 0.5}}", "sgd belongs to name=sgd, and name is adamw: leave it out."),
        ("optimizer: {name: sgd, sgd: {momentum: 0, nesterov: true}}", "nesterov=true needs a momentum above 0."),
        (
            "optimizer: {name: xyz}",
            "it should be 'adamw', 'sgd', 'adafactor', 'lion', 'lamb', 'muon' or 'schedule_free'.",
        ),
        ("engine: {precision: bf61}", "it should be 'fp32', 'bf16' or 'fp16'; did you mean bf16?"),
        ("engine: {zero_stage: 5}", "engine.zero_stage=5: it should be 0, 1, 2 or 3."),
        ("model: {initial_scale: 200}", "it should be less than or equal to 100; the nearest that works is 100.0."),
        ("model: {image: {patch_dropout: 1}}", "model.image.patch_dropout=1: it should be less than 1."),
        ("model: {text: {pooling: mode}}", "it should be 'eos', 'cls', 'mean' or 'last'"),
        (
            "model: {text: {lengths: {global: 2}}}",
            "model.text.lengths.global=2: it should be greater",
        ),
        ("objective: {mining: {guide: text}}", "objective.mining: give threshold, top_k or both"),
        ("objective: {local_mining: {}}", "objective.local_mining: give threshold, top_k or both"),
        (
            "objective: {mining: {threshold: 1.1}}",
            "objective.mining.threshold=1.1: it should be less",
        ),
        (
            "objective: {global: 0, summary: 0, local: 0}",
            "objective: the weights of global, summary and local are",
        ),
        ("objective: {scope: image, local_mining: {top_k: 1}}", "objective: local_mining compares sentences"),
        ("evaluation: {templates: []}", "evaluation.templates=[]"),
        ("evaluation: {templates: [face]}", "evaluation.templates.0: 'face' has no {}"),
        ("checkpoint: 5", "checkpoint=5: it should be a block of settings, such as {key: value}."),
    ],
)
def test_the_error_for_a_bad_value_has_its_line_and_its_rule(line, told):
    first, *_ = refusal(f"{TEXT}{line}\n").splitlines()
    assert first.startswith("cfg.yaml:7: ")
    assert told in first


@pytest.mark.parametrize("name", ["a b", "", "-a", "a/b", "../a"])
def test_a_name_that_cannot_be_a_folder_name_is_refused(name):
    assert refusal(TEXT.replace("name: t", f"name: {name!r}")).startswith(f"cfg.yaml:1: name={name!r}: ")


def test_a_nested_key_has_its_own_line_and_a_list_item_that_of_its_list():
    text = "a:\n  b:\n    c: 1\n    d: [1, 2]\n"
    origin = Origin.of(Path("f.yaml"), text, [])
    assert origin.place(("a", "b", "c")) == "f.yaml:3"
    assert origin.place(("a", "b", "d", 1)) == "f.yaml:4"
    assert origin.place(("a", "x")) == "f.yaml:1"
    assert origin.place(("x",)) == "f.yaml"
