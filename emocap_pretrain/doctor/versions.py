"""Checks the version of Python, and the installed packages against their requirements and a list of tested versions."""

import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, fail, ok, skipped, warn

PACKAGE = "emocap-pretrain"
MOST_LOCK_BYTES = 1 << 20
_SHOWN = 4  # Packages that a message names; further ones are counted.
_PINNED = re.compile(r"([A-Za-z0-9._-]+)\s*==\s*([^\s;#]+)")
_INSTALL = "install them: pip install -r requirements.lock (launch/setup.sh makes the whole environment)"


def check_python(inputs: DoctorInputs) -> Iterator[CheckResult]:  # noqa: ARG001 - the form of a check
    """Compares Python with the versions that this package supports."""
    found, wanted = platform.python_version(), _python_requirement()
    here = f"{found} on {platform.system()} {platform.machine()}"
    # A release candidate such as 3.12.0rc1 counts as its release.
    if wanted and not SpecifierSet(wanted).contains(Version(found).base_version):
        yield fail(f"{here}, where {wanted} is needed", "make the environment again: PYTHON=python3.11 launch/setup.sh")
    elif platform.system() != "Linux":
        yield fail(f"{here}: training needs Linux", "use Linux, or a container (launch/Dockerfile)")
    else:
        yield ok(here)


def check_versions(inputs: DoctorInputs) -> Iterator[CheckResult]:
    """Compares the installed packages with the requirements of this package and with the list of tested versions."""
    broken = list(_broken_requirements())
    if broken:
        yield fail(f"requirements that are not met: {_listed(broken)}", _INSTALL)
    if inputs.lock is None:
        yield skipped("no list of versions: give one with --lock, such as the pip freeze of another host")
        return
    try:
        locked = read_lock(inputs.lock)
    except (OSError, UnicodeDecodeError) as error:
        yield fail(f"{inputs.lock} cannot be read: {error}", "give a requirements file or the output of pip freeze")
        return
    if not locked:
        yield fail(f"{inputs.lock} pins no version", "give a requirements file or the output of pip freeze")
        return
    installed = _installed()
    different = [
        f"{name} {installed[name]} (tested: {version})"
        for name, version in sorted(locked.items())
        if name in installed and not _is_same(installed[name], version)
    ]
    if different:
        yield warn(f"versions that differ from {inputs.lock.name}: {_listed(different)}", _INSTALL)
    elif not broken:
        same = sum(name in installed for name in locked)
        yield ok(f"{same} of the {len(locked)} packages of {inputs.lock.name} are here")


def read_lock(path: Path) -> dict[str, str]:
    """Returns the version of each package that a list pins as `NAME==VERSION`, by its canonical name.

    Other lines are ignored. At most 1 MiB of the file is read.

    Raises:
        OSError: If the file cannot be read.
        UnicodeDecodeError: If it is not UTF-8 text.
    """
    with path.open("rb") as file:
        lines = file.read(MOST_LOCK_BYTES).decode("utf-8").splitlines()
    pins = (_PINNED.match(line.strip()) for line in lines)
    return {canonicalize_name(pin[1]): pin[2] for pin in pins if pin}


def _python_requirement() -> str:
    try:
        return metadata.metadata(PACKAGE)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        return ""


def _broken_requirements() -> Iterator[str]:
    """Yields each requirement of this package, without its extras, that no installed package meets."""
    try:
        stated = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return
    for requirement in map(Requirement, stated):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} (needed: {requirement.specifier})"


def _installed() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for each in metadata.distributions():
        # A damaged installation has no name. Of two installations of a package, Python imports the first one.
        if name := each.metadata["Name"]:
            found.setdefault(canonicalize_name(name), each.version)
    return found


def _is_same(found: str, wanted: str) -> bool:
    """Returns whether two versions are equal, apart from a local part such as +cpu or +cu128."""
    try:
        return Version(found).public == Version(wanted).public
    except InvalidVersion:
        return found == wanted


def _listed(texts: list[str]) -> str:
    beyond = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + beyond
