"""The picture in docs/architecture.md shows the import contracts as they are."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree as ET

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
drawing = SimpleNamespace(**runpy.run_path(str(PICTURES / "architecture.py")))


def test_the_committed_picture_is_that_of_the_contracts():
    contracts = drawing.Contracts.read(ROOT / "pyproject.toml")
    found = (PICTURES / "architecture.svg").read_text(encoding="utf-8")
    assert found == drawing.svg(contracts), "run `python docs/pictures/architecture.py`"


def test_the_contracts_say_which_layer_imports_a_framework_and_the_cluster():
    contracts = drawing.Contracts.read(ROOT / "pyproject.toml")
    assert contracts.doors["emocap_pretrain.training"] == ["deepspeed", "timm"]
    assert contracts.doors["emocap_pretrain.tracking"] == ["mlflow", "tensorboardX", "wandb"]
    assert "run" in contracts.meets["emocap_pretrain", "emocap_cluster"]


def test_every_module_is_drawn_once_and_its_name_fits_its_box():
    contracts = drawing.Contracts.read(ROOT / "pyproject.toml")
    space = "{http://www.w3.org/2000/svg}"
    picture = ET.fromstring(drawing.svg(contracts))
    boxes = [each for each in picture.iter(f"{space}rect") if each.get("class") == "layer"]
    names = [each.text for each in picture.iter(f"{space}text") if each.get("class") is None]
    modules = [module for layers in contracts.layers.values() for layer in layers for module in layer]
    assert sorted(filter(None, names)) == sorted(modules)
    for name, box in zip(names, boxes, strict=True):
        assert len(name or "") * 7 < float(box.get("width", 0))
