"""Tests that every process of an environment of setup.sh can import the libraries that need torchvision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUP = ("requirements.lock", "pyproject.toml", "launch/setup.sh")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the interpreter of an environment that setup.sh has made, with a fake pip.

    Nothing is installed. A .pth file, with the name that hatch gives to its file, lists the folders of this checkout
    and of the packages that are installed here.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name in SETUP:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    for path, text in ((folder / ".venv/bin/pip", "exit 0"), (folder / "sleep", "exec /bin/sleep 0.02")):
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "PYTHON": sys.executable}
    # The disk may be smaller than a real environment needs.
    script = "df() { printf 'head\\n- - - 9999999\\n'; }; . launch/setup.sh; make_environment"
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, check=True, timeout=60)
    (packages,) = folder.glob(".venv/lib/python3.*/site-packages")
    assert (packages / "emocap_torchvision.pth").is_file()
    parts = [str(ROOT / part) for part in (".", "kernels", "shards", "cluster")]
    installed = [path for path in sys.path if path.endswith("-packages")]
    (packages / "_emocap_pretrain.pth").write_text("\n".join([*parts, *installed]))
    return folder / ".venv/bin/python"


def output(python: Path, program: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", program], cwd=python.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement", ["import timm", "import open_clip", "from transformers import CLIPModel", "import torchvision.ops"]
)
def test_a_library_that_needs_torchvision_can_be_imported(python, statement):
    program = f"import sys\n{statement}\nprint('torchvision' in sys.modules, 'emocap_pretrain' in sys.modules)"
    assert output(python, program) == ["True", "False"]


def test_the_start_of_python_imports_the_finder_and_no_package(python):
    found = set(output(python, "import sys; print(*sys.modules)"))
    assert "emocap_torchvision" in found
    assert not found & {"torch", "torchvision", "typing", "pathlib", "importlib.abc", "emocap_pretrain"}


def test_the_question_whether_torchvision_is_installed_imports_nothing(python):
    program = """
import sys
from importlib.util import find_spec
print(find_spec("torchvision").origin.endswith("torchvision/__init__.py"))
print([name for name in ("torch", "torchvision") if name in sys.modules])
"""
    assert output(python, program) == ["True", "[]"]


def test_the_finder_is_installed_once(python):
    program = """
import sys
import emocap_torchvision
def count():
    return sum(isinstance(each, emocap_torchvision.DeclareOperators) for each in sys.meta_path)
print(count())
import emocap_pretrain.model.timm_image, emocap_pretrain.model.transformers_text
print(count())
"""
    assert output(python, program) == ["1", "1"]


def test_the_towers_can_be_imported_without_the_finder_of_the_environment(python):
    program = """
import sys
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__module__ != "emocap_torchvision"]
import emocap_pretrain.model.timm_image
print("torchvision" in sys.modules)
"""
    assert output(python, program) == ["True"]


def test_nothing_is_declared_with_a_cuda_build_of_torch(python):
    # Whatever build runs here, torch now says that it has CUDA, and nobody imports torchvision.
    program = """
import emocap_torchvision, torch
torch.version.cuda = "13.0"
emocap_torchvision._declare([])
print(hasattr(torch.ops.torchvision, "nms"))
"""
    assert output(python, program) == ["False"]


def test_an_operator_that_torchvision_itself_declares_is_not_declared_again(python):
    program = """
import emocap_torchvision, torch
library = torch.library.Library("torchvision", "FRAGMENT")
library.define(emocap_torchvision.SCHEMAS[0])
emocap_torchvision._declare([])
print(hasattr(torch.ops.torchvision, "qnms"))
"""
    assert output(python, program) == ["True"]
