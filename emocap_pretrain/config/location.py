"""Makes paths absolute when a config is read, because ranks may start in another folder.

`Location` is the type of a setting that names a folder or URL. `FolderOrName` is the type of a setting that names a
folder or, for example, a model on a hub. `WeightsSource` is the type of a setting that also names a run. Validation
with the context `INERT` leaves values of all three types unchanged; it is used for settings from a checkpoint, and when
one section of a config is replaced.
"""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

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
    if info.context == INERT:
        return name
    path = _absolute_path(name)
    return path if name not in {"data", "from", "hub"} and Path(path).exists() else name


RUN_PREFIX = "run:"
"""The first characters of a source of weights that is a run of this project: `run:URL` or `run:URL@step`."""


def _absolute_source(source: str, info: ValidationInfo) -> str:
    """Makes the path of a run, a file or a folder absolute. A hub name is returned unchanged."""
    if not source.startswith(RUN_PREFIX):
        return _absolute_if_it_exists(source, info)
    return RUN_PREFIX + _absolute(source.removeprefix(RUN_PREFIX), info)


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
FolderOrName = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_it_exists)]
WeightsSource = Annotated[str, Field(min_length=1), AfterValidator(_absolute_source)]
