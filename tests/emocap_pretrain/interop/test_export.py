"""Tests that libraries load our exports correctly, and that a refused or interrupted export leaves nothing."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from cli_calls import called
from emocap_shards.errors import StoreError
from pretrain_fakes import changed
from safetensors import SafetensorError

import emocap_pretrain as emocap
from emocap_pretrain.checkpoint.layout import WEIGHTS
from emocap_pretrain.cli import export as command
from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.tokenizer import Tokenizer
from emocap_pretrain.errors import ConfigError
from emocap_pretrain.interop.export import portable, verify
from emocap_pretrain.interop.export.card import CARD, CardFacts, card
from emocap_pretrain.interop.export.document import EXPORT, EXPORT_FILE
from emocap_pretrain.interop.export.exporting import export
from emocap_pretrain.interop.export.probes import CAPTIONS, probes_of
from emocap_pretrain.interop.export.registry import FORMATS
from emocap_pretrain.interop.export.verify import BOUND
from emocap_pretrain.interop.restore import Restored
from emocap_pretrain.run_folder.documents import RunDocument
from emocap_pretrain.run_folder.parent import Parent
from emocap_pretrain.training.build import build_model

COMPARED = {
    "transformers": {"image", "text", "photo", "scale"},
    "open_clip": {"image", "text", "photo", "scale", "bias"},
    "onnx": {"image", "patches", "text", "sentence", "scale", "local_scale", "bias"},
    "torch": {"image", "patches", "text", "sentence", "scale", "local_scale", "bias"},
    "safetensors": {"image", "patches", "text", "sentence", "scale", "local_scale", "bias", "photo"},
}
FACTS = CardFacts(results=[("UAR", "41.1%")], data_license="CC BY 4.0")


SIZES = {"patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
# Models whose towers are those of CLIP and of SigLIP.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "clip": {
        "model__image": {
            "name": "vit_base_patch16_clip_224",
            "pixels": 16,
            "options": {**SIZES, "act_layer": "quick_gelu"},
        },
    },
    "siglip": {
        "model__image": {"name": "vit_base_patch16_siglip_224", "pixels": 16, "options": SIZES},
        "model__embedding": 32,
        "model__project_images": False,
        "model__text_bias": True,
        "model__text__pooling": "last",
        "model__text__architecture": {"family": "siglip", "width": 32, "layers": 1, "heads": 2, "positions": 40}
        | {"activation": "gelu", "norm_eps": 1e-6},
        "objective__kind": "sigmoid",
    },
}


def trained(config: Config, *, seed: int) -> Restored:
    """Returns a model with random weights, large enough that a wrong activation changes its vectors visibly."""
    tokenizer = Tokenizer.trained_on(CAPTIONS, 300)
    torch.manual_seed(seed)
    model = build_model(config, tokenizer.vocabulary, weights=False).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
        elif name.endswith(".bias"):
            torch.nn.init.normal_(parameter, std=0.02)
    return Restored(config, model, tokenizer, 7, "abc", "d" * 64)


@pytest.fixture(scope="module")
def model(tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory) -> Restored:
    config = changed(tiny(tmp_path_factory.mktemp("model")), objective__kind="sigmoid")
    return trained(config, seed=0)


@pytest.fixture(scope="module")
def onnx(model: Restored, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of the model's export to ONNX."""
    folder = tmp_path_factory.mktemp("exports") / "made" / "onnx"
    export(model, FORMATS["onnx"], folder, facts=FACTS)
    return folder


def differences(folder: Path) -> Mapping[str, float]:
    found = EXPORT.parse((folder / EXPORT_FILE).read_bytes()).differences
    assert found is not None
    return found


def nothing_is_left(folder: Path) -> bool:
    return not folder.exists() and not list(folder.parent.glob(f".{folder.name}*"))


def broken(kind: str, write: Callable[[Restored, Path], None]) -> Any:
    return replace(FORMATS[kind], write=write)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_library_of_a_format_computes_our_vectors_in_a_fresh_process(model, onnx, kind, tmp_path):
    folder = onnx if kind == "onnx" else tmp_path / "made" / kind
    if kind != "onnx":
        export(model, FORMATS[kind], folder, facts=FACTS)
    found = differences(folder)
    assert found.keys() == COMPARED[kind]
    assert all(value <= BOUND for name, value in found.items() if name != "photo")
    assert kind == "open_clip" or found.get("photo", 0) <= BOUND
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        json.loads((folder / name).read_text(encoding="utf-8"))
    written = (folder / CARD).read_text(encoding="utf-8")
    assert all(
        text in written for text in ("# tiny, step 7", "d" * 64, "CC BY 4.0", "41.1%", "Intended use and limits")
    )
    # open_clip's config holds the path of its own folder.
    assert ".partial" not in "".join(path.read_text() for path in folder.glob("*.json"))


# Imports take longest by far, so the exports of the families share one process. The test above shows that `export`
# itself starts a process for each export.
LOAD_SEVERAL = """
import json, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
for job in json.loads(sys.argv[2]):
    main(*job)
"""


@pytest.fixture(scope="module")
def loaded(
    tiny: Callable[[Path], Config], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[tuple[str, str], tuple[Path, Mapping[str, float]]]:
    """Returns, for each family of models and each library, the folder of an export and the differences from our model.

    The library loads the export in another process. The differences are the largest ones, by the name of the result.
    """
    folder = tmp_path_factory.mktemp("families")
    jobs: dict[tuple[str, str], tuple[str, ...]] = {}
    for family, changes in FAMILIES.items():
        model = trained(changed(tiny(tmp_path_factory.mktemp(family)), **changes), seed=0)
        np.savez(folder / f"{family}.npz", allow_pickle=False, **probes_of(model))
        for kind in ("transformers", "open_clip"):
            out = folder / f"{family}-{kind}"
            out.mkdir()
            FORMATS[kind].write(model, out)
            jobs[family, kind] = (kind, str(out), str(folder / f"{family}.npz"), f"{out}.json")
    command = [sys.executable, "-P", "-c", LOAD_SEVERAL, str(verify._SCRIPT), json.dumps(list(jobs.values()))]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    assert done.returncode == 0, done.stderr
    return {key: (Path(out), json.loads(Path(result).read_text())) for key, (_, out, _, result) in jobs.items()}


@pytest.mark.parametrize(
    ("family", "kind", "files"),
    [
        ("clip", "transformers", {"config.json": "CLIPModel"}),
        ("siglip", "transformers", {"config.json": "SiglipModel"}),
        ("clip", "open_clip", {"open_clip_config.json": "head_width"}),
        ("siglip", "open_clip", {"open_clip_config.json": "vit_base_patch16_siglip_224|image_tower"}),
    ],
)
def test_towers_of_a_family_become_the_family_s_own_class(loaded, family, kind, files):
    folder, found = loaded[family, kind]
    assert COMPARED[kind] - {"bias"} <= found.keys()
    assert ("bias" in found) == (family == "siglip")
    assert all(value <= BOUND for name, value in found.items() if name != "photo")
    for name, text in files.items():
        assert re.search(text, (folder / name).read_text())


def test_an_export_with_other_weights_is_refused_and_an_earlier_one_stays(model, onnx, tmp_path):
    folder = shutil.copytree(onnx, tmp_path / "onnx")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    copied = broken("onnx", lambda _, partial: shutil.copytree(onnx, partial, dirs_exist_ok=True) and None)
    other = trained(model.config, seed=1)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ConfigError, match=r"onnxruntime the model gives other vectors than here: image by") as told:
            export(other, copied, target, facts=FACTS, force=True)
        assert "\n" not in str(told.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert nothing_is_left(tmp_path / "new")
    export(model, copied, folder, facts=CardFacts(), force=True)
    assert "41.1%" not in (folder / CARD).read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_what_a_library_cannot_load_is_refused_with_its_last_line(model, tmp_path):
    empty = broken("onnx", lambda _, folder: (folder / "image.onnx").write_bytes(b"no graph") and None)
    with pytest.raises(ConfigError, match=r"--to onnx: onnxruntime cannot load what was written: .*image\.onnx"):
        export(model, empty, tmp_path / "out", facts=FACTS)
    assert nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize("end", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_export_leaves_nothing(model, tmp_path, end):
    def write(_: Restored, folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise end

    with pytest.raises(end):
        export(model, broken("torch", write), tmp_path / "out", facts=FACTS)
    assert nothing_is_left(tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "free", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 0, "(No space left on device): free some space"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), 1 << 30, "(No space left on device): "),
        (RuntimeError("unexpected pos 64 vs 0"), 0, "(No space left on device): free some space, and start the same"),
        (OSError(errno.EIO, "Input/output error"), 1 << 30, "(Input/output error): correct this"),
        (RuntimeError("unexpected pos 64 vs 0"), 1 << 30, None),
    ],
)
def test_a_disk_that_takes_no_files_is_one_line_and_nothing_is_left(model, tmp_path, monkeypatch, error, free, line):
    def write(_: Restored, folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise error

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, free))
    with pytest.raises(StoreError if line else RuntimeError) as caught:
        export(model, broken("torch", write), tmp_path / "out", facts=FACTS)
    assert (line or "unexpected pos") in str(caught.value)
    assert nothing_is_left(tmp_path / "out")


def test_only_an_earlier_export_is_ever_replaced(model, tmp_path):
    def never(*_: object) -> None:
        pytest.fail("it writes")

    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/face.jpg").touch()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / EXPORT_FILE).touch()
    (tmp_path / "file").touch()
    for name, force, message in (
        ("photos", True, "is not empty and holds no export"),
        ("old", False, "holds an export already.*--force"),
        ("file", True, "is not a folder"),
        ("file/inside", False, "no folder can be made there"),
    ):
        with pytest.raises(ConfigError, match=message):
            export(model, broken("torch", never), tmp_path / name, facts=FACTS, force=force)


def test_a_missing_library_is_named_before_anything_is_written(model, tmp_path):
    absent = replace(FORMATS["onnx"], modules={"no_such_library": "no-such-library"})
    with pytest.raises(ConfigError, match=r"needs no-such-library.*pip install 'emocap-pretrain\[export\]'"):
        export(model, absent, tmp_path / "out", facts=FACTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["transformers", "open_clip"])
def test_a_pooling_that_a_format_does_not_have_is_refused_with_the_formats_that_have_it(
    model, kind, tmp_path, monkeypatch
):
    monkeypatch.setattr(model.model.text, "pooling", "mean")
    with pytest.raises(ConfigError, match=r"pooling=mean.*export to .*onnx, torch or safetensors"):
        FORMATS[kind].write(model, tmp_path)


def test_the_card_shows_texts_of_strangers_as_code_and_in_one_line(model):
    evil = "<script>x</script> [a](javascript:b) `|\n# heading\x1b[2J"
    facts = CardFacts(results=[(evil, evil)], data_license=evil, parent=evil)
    stranger = replace(model, run_id=evil, data_digest=evil)
    written = card(stranger, FORMATS["onnx"], facts, {"image": 0.0}, {})
    assert "\x1b" not in written
    assert "\n# heading" not in written
    lines = [line for line in written.splitlines() if "<script>" in line]
    assert len(lines) == 5
    # The hostile text appears only in code spans.
    assert all("script" not in "".join(line.split("`")[::2]) for line in lines)


@pytest.fixture
def exported(model: Restored, tmp_path: Path) -> Path:
    """Returns a folder of the format `safetensors`, which was not compared."""
    portable.write(model, tmp_path)
    return tmp_path


def test_our_own_form_is_read_again_and_names_nothing_of_the_run(model, exported):
    found = portable.read(exported)
    assert (found.step, found.run_id, found.data_digest) == (7, "abc", "d" * 64)
    weights = model.model.state_dict()
    assert all(tensor.equal(weights[name]) for name, tensor in found.model.state_dict().items())
    assert found.tokenizer.to_json() == model.tokenizer.to_json()
    assert found.config.evaluation.templates == model.config.evaluation.templates
    written = (exported / portable.DOCUMENT).read_text()
    assert model.config.url not in written
    assert str(model.config.data.url) not in written


def test_our_own_form_is_loaded_from_python_and_has_one_step(model, exported):
    loaded = emocap.load(exported, device="cpu")
    with torch.inference_mode():
        ours = model.model.embed_texts(model.tokenizer.encode(["a happy face"], model.model.prompt_length))
    assert torch.equal(torch.from_numpy(loaded.embed_texts(["a happy face"])), ours)
    with pytest.raises(ConfigError, match="is an export, which has only one step and one kind"):
        emocap.load(exported, step=3)


def test_our_own_form_is_data_and_nothing_that_it_names_is_opened(exported):
    document = exported / portable.DOCUMENT
    tree = json.loads(document.read_text())
    tree["config"]["model"]["image"]["name"] = "hf-hub:stranger/model"
    document.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="names the image tower 'hf-hub:stranger/model'"):
        portable.read(exported)
    document.write_text("{")
    with pytest.raises(ConfigError, match=r"emocap.json cannot be read \(it is not JSON\): export the run again"):
        portable.read(exported)


@pytest.mark.parametrize("name", [portable.DOCUMENT, WEIGHTS, "tokenizer.json"])
def test_our_own_form_without_a_file_is_refused_by_the_name_of_the_file(exported, name):
    (exported / name).unlink()
    with pytest.raises(ConfigError, match=f"has no {name}"):
        portable.read(exported)


def test_the_card_names_the_run_with_whose_weights_a_run_began():
    start = Parent("/home/someone/runs/faces", 1200, "abc", "d" * 64)
    assert command._parent(RunDocument("id", {}, parent="copied", warm_start=start)) == (
        f"step 1,200 of runs/faces abc {'d' * 64}"
    )
    assert command._parent(RunDocument("id", {}, parent="copied")) == "copied"


def test_the_command_offers_every_format():
    assert set(get_args(get_type_hints(command.command)["to"])) == set(FORMATS)


def test_the_command_exports_a_run_with_its_results(finished_run, tmp_path):
    out = tmp_path / "out"
    done = called("export", finished_run.url, "--to", "onnx", "--out", out, "--data-license", "CC0", "--json")
    assert done.exit_code == 0, done.stderr
    tree = json.loads(done.stdout)
    assert (tree["format"], tree["step"], tree["differences"].keys()) == ("onnx", 2, COMPARED["onnx"])
    written = (out / CARD).read_text(encoding="utf-8")
    assert all(text in written for text in ("prompted UAR", "CC0", "faces"))
    assert str(finished_run.evaluation.url) not in written


def test_a_run_or_step_that_is_not_whole_is_one_line_and_no_export(finished_run, tmp_path):
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(finished_run.url, copy)
    for damage, words, message in (
        (lambda: None, ("--step", "1"), "has no checkpoint of step 1; steps: 2"),
        (lambda: next(copy.rglob(WEIGHTS)).write_bytes(b"half"), (), "is missing or damaged"),
        (lambda: shutil.rmtree(copy), (), "has no checkpoint; steps: none"),
    ):
        damage()
        done = called("export", copy, "--to", "safetensors", "--out", out, *words)
        assert done.exit_code == 1
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert nothing_is_left(out)
