"""The losses as a distribution of their own: the content of the wheel, and its requirements."""

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"

# The program cannot import what the rest of the project requires.
PROGRAM = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split():
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Wall())
sys.path += sys.argv[1:3]
import torch
from emocap_kernels import Mining, contrastive_loss, region_contrastive_loss

image, text = (torch.eye(4)[:3].requires_grad_() for _ in range(2))
scale = torch.tensor(5.0, requires_grad=True)
contrastive_loss(image, text, scale, mining=Mining(top_k=1)).loss.backward()
patches = torch.eye(4).repeat(3, 1, 1).requires_grad_()
region_contrastive_loss(patches, text, torch.tensor([0, 1, 2]), scale).loss.backward()
assert all(tensor.grad.isfinite().all() for tensor in (image, text, scale, patches))
import emocap_kernels
print(emocap_kernels.__file__)
print(*{name.partition(".")[0] for name in sys.modules if name[:2] != "__"} - set(sys.stdlib_module_names))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=ROOT / "kernels", capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("dist-info/METADATA")]
        return message_from_bytes(archive.read(name))


def test_the_wheel_holds_every_module_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not re.match(r"emocap_kernels-[\d.]+\.dist-info/", name)}
    package = ROOT / "kernels" / "emocap_kernels"
    assert names == {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}


def test_the_wheel_requires_only_torch_except_by_an_extra(metadata):
    assert metadata.get_all("Requires-Dist") == ["torch>=2.11", "triton>=3.6; extra == 'fused'"]


def test_the_wheel_has_the_version_and_the_pythons_of_the_project(metadata):
    whole = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["Version"] == whole["version"]
    assert metadata["License-Expression"] == whole["license"]
    assert set(metadata["Requires-Python"].split(",")) == set(whole["requires-python"].split(","))


def test_the_wheel_contains_the_licence(wheel, metadata):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"emocap_kernels-{metadata['Version']}.dist-info"
        assert archive.read(f"{folder}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_both_losses_run_from_the_wheel_with_torch_and_its_requirements(wheel, tmp_path):
    package, needed = tmp_path / "package", tmp_path / "needed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(package)
    needed.mkdir()
    link_requirements("torch", needed, set())
    allowed = {path.name.partition(".")[0] for path in needed.iterdir()}
    # On a CUDA machine torch itself requires triton. The losses must not.
    others = "numpy triton transformers jaxtyping deepspeed ray timm emocap_pretrain"
    # -I and -S leave out site-packages, PYTHONPATH and the current folder.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(package), str(needed), others],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    place, imported = done.stdout.splitlines()
    assert Path(place).is_relative_to(package)
    assert set(imported.split()) - {"emocap_kernels"} <= allowed


def link_requirements(name: str, folder: Path, seen: set[str]) -> None:
    """Links what the distribution `name` installed, and all that it requires here, into `folder`."""
    if name in seen:
        return
    seen.add(name)
    found = distribution(name)
    for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        if not (folder / top).exists():
            (folder / top).symlink_to(str(found.locate_file(top)))
    for text in found.requires or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            link_requirements(requirement.name, folder, seen)
