"""Where things lie: paths become absolute when a config is read, because ranks may start in another folder."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

INERT = "inert"
"""Validation context of a config that somebody else may have written: its paths are not looked up."""


def _absolute(location: str, info: ValidationInfo) -> str:
    """A path, also that of an sqlite file, becomes absolute; another URL stays as it is."""
    if info.context == INERT:
        return location
    scheme, separator, path = location.partition("://")
    if not separator:
        return _absolute_path(location)
    if scheme == "sqlite" and path.startswith("/") and not path.startswith("//"):
        return f"sqlite:///{_absolute_path(path[1:])}"
    return location


def _absolute_path(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _absolute_if_there(name: str, info: ValidationInfo) -> str:
    """A path that is there becomes absolute; 'data' and 'hub' are words, also beside folders of these names."""
    if info.context == INERT:
        return name
    path = _absolute_path(name)
    return path if name not in {"data", "hub"} and Path(path).exists() else name


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
FolderOrName = Annotated[str, Field(min_length=1), AfterValidator(_absolute_if_there)]
