"""Writes filter files for the tests of this folder."""

from pathlib import Path

from emocap_shards.filter_file import Exclusion, FilterFile, FilterOrigin, write_filter
from emocap_shards.manifest import read_manifest

ORIGINS = (FilterOrigin("agreement", "emocap check", below=0.5), FilterOrigin("not a face", "anna"))


def filter_for(url: str, place: Path, *exclusions: Exclusion) -> str:
    """Writes a filter of the dataset at `url` to `place`, and returns its path.

    Origin 0 is a check, and origin 1 is a person.
    """
    write_filter(str(place), FilterFile.of(read_manifest(url).digest, ORIGINS, exclusions))
    return str(place)
