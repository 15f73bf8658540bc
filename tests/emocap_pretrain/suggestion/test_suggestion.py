"""Tests that suggested settings are valid, and that their YAML has the values that are meant."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from emocap_pretrain.config.fields import label_text
from emocap_pretrain.config.load import load
from emocap_pretrain.suggestion import Block, DataFacts, Hardware, WeightsChoice, suggest, written
from emocap_pretrain.suggestion.table_columns import columns_of

GIB = 1 << 30
hosts = st.builds(
    Hardware,
    gpus=st.lists(st.sampled_from([("NVIDIA A10G", 24 * GIB), ("NVIDIA H100", 80 * GIB)]), max_size=8).map(tuple),
    cores=st.integers(1, 256),
    memory_bytes=st.integers(1 << 30, 1 << 40),
)
names = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(
    lambda name: "${" not in name and not name.isspace()
)


@st.composite
def facts(draw: st.DrawFn) -> DataFacts:
    samples = draw(st.integers(2, 5_000_000))
    labels: dict[str, Any] = {}
    if draw(st.booleans()):
        classes = draw(st.lists(names | st.integers(0, 99).map(float), min_size=2, max_size=9, unique_by=label_text))
        labels["emotion"] = {each: draw(st.integers(1, 1000)) for each in classes}
    if draw(st.booleans()):
        labels["valence"] = {0.25: 3, -0.5: 4}
    captioned = draw(st.sampled_from([0, samples] if labels else [samples]))
    return DataFacts(
        url="faces",
        packed=draw(st.booleans()),
        kind="a table",
        samples=samples,
        with_caption=captioned,
        with_local=draw(st.sampled_from([0, captioned])),
        with_summary=draw(st.sampled_from([0, captioned])),
        labels=labels,
    )


@settings(max_examples=60)
@given(
    found=facts(),
    host=hosts,
    weights=st.sampled_from(["clip", "packages", "none"]),
    splits=st.sampled_from([("train",), ("train", "test"), ("train", "valid", "test")]),
)
def test_the_written_config_loads_with_the_values_that_are_meant(
    found: DataFacts, host: Hardware, weights: Any, splits: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    urls = {split: f"data/mine/{split}" for split in splits}
    suggestion = suggest("mine", urls, found, host, weights=weights)
    text = written(suggestion.blocks)
    assert yaml.safe_load(text) == suggestion.settings
    file = tmp_path_factory.mktemp("suggested") / "my.yaml"
    file.write_text(text, encoding="utf-8")
    config = load(file)
    assert (config.steps, config.global_batch) == (suggestion.settings["steps"], suggestion.settings["global_batch"])
    assert 2 <= config.global_batch <= max(2, found.samples) or config.global_batch <= 512 * len(host.gpus)
    assert config.optimizer.warmup_steps <= config.steps
    assert config.checkpoint.every_steps <= config.steps
    heads = config.objective.labels
    assert bool(heads) == (found.with_caption == 0)
    if heads and found.class_label:
        assert heads[0].classes == tuple(found.classes)
    if not heads and found.classes and len(splits) > 1:
        assert config.evaluation.classes == {name: (name,) for name in found.classes}
    assert (config.evaluation.url is None) == (len(splits) == 1)


@pytest.mark.parametrize(
    "name", ["on", "no", "1e3", "0x1f", "12:30", "null", "~", "- a", "a: b", "#x", "NaN", "é", "'", "1_000"]
)
def test_a_class_with_an_unusual_name_stays_a_text(name: str, tmp_path: Path) -> None:
    found = DataFacts(url="x", packed=True, kind="x", samples=100, labels={"emotion": {name: 60, "other": 40}})
    text = written(suggest("x", {"train": "x"}, found, Hardware(), weights="none").blocks)
    file = tmp_path / "x.yaml"
    file.write_text(text, encoding="utf-8")
    assert set(load(file).objective.labels[0].classes or ()) == {name, "other"}


def test_a_name_that_a_config_would_resolve_is_refused() -> None:
    with pytest.raises(ValueError, match="rename it"):
        written([Block("", {"classes": ["${oc.env:HOME}"]})])


def test_a_comment_cannot_become_a_setting() -> None:
    text = written([Block("a\nsteps: 3 " + "word " * 60, {"name": "x"})])
    assert yaml.safe_load(text) == {"name": "x"}
    assert max(map(len, text.splitlines())) <= 120


def test_uneven_classes_are_balanced_and_even_ones_are_not() -> None:
    def balance(rare: int) -> str:
        found = DataFacts(url="x", packed=True, kind="x", samples=900, labels={"emotion": {"a": 300, "b": rare}})
        (head,) = suggest("x", {"train": "x"}, found, Hardware(), weights="none").settings["objective"]["labels"]
        return head.get("balance", "none")

    assert (balance(290), balance(20)) == ("none", "effective")


def test_a_large_dataset_of_which_a_part_was_read_is_trained_on_its_captions() -> None:
    found = DataFacts(
        url="x",
        packed=True,
        kind="x",
        samples=1_200_000,
        complete=False,
        reached=500_000,
        with_caption=500_000,
        labels={"emotion": {"a": 250_000, "b": 250_000}},
    )
    host = Hardware(gpus=(("NVIDIA H100", 80 * GIB),))
    assert suggest("x", {"train": "x"}, found, host, weights="clip").purpose.startswith("pretrain on 1,200,000")


def test_size_and_hardware_decide_between_fine_tuning_and_pretraining() -> None:
    gpu = Hardware(gpus=(("NVIDIA H100", 80 * GIB),) * 8, cores=96)

    def purpose(samples: int, host: Hardware) -> tuple[str, bool]:
        found = DataFacts(url="x", packed=True, kind="x", samples=samples, with_caption=samples)
        suggestion = suggest("x", {"train": "x"}, found, host, weights="clip" if host.gpus else "packages")
        image = suggestion.settings["model"].get("image", {})
        return suggestion.purpose.split(" ")[0], image.get("freeze") == "all"

    assert purpose(500, gpu) == ("fine-tune", True)
    assert purpose(35_000, gpu) == ("fine-tune", False)
    assert purpose(5_000_000, gpu) == ("pretrain", False)
    assert purpose(5_000_000, Hardware()) == ("fine-tune", False)


@pytest.mark.parametrize("weights", ["clip", "packages"])
def test_a_caption_without_a_summary_is_read_whole(weights: WeightsChoice) -> None:
    def most_tokens(with_summary: int) -> int:
        found = DataFacts(url="x", packed=True, kind="x", samples=900, with_caption=900, with_summary=with_summary)
        settings = suggest("x", {"train": "x"}, found, Hardware(), weights=weights).settings
        return settings["model"]["text"]["lengths"]["global"]

    assert most_tokens(0) >= 64 > most_tokens(900)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("lines", ["image;caption;emotion", "sep=;\nimage;caption;emotion", "image\tcaption\t emotion"])
def test_the_columns_of_a_table_of_excel_are_found(tmp_path: Path, encoding: str, lines: str) -> None:
    table = tmp_path / "faces.csv"
    table.write_text(f"{lines}\n", encoding=encoding)
    assert columns_of(table) == ["image", "caption", "emotion"]
