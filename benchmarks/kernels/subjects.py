"""The losses that the command can measure, by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from .global_loss import GLOBAL
from .local_loss import REGION
from .subject import Subject

SUBJECTS: Mapping[str, Subject] = {subject.name: subject for subject in (GLOBAL, REGION)}


def subject_of(what: str) -> Subject | None:
    """The one whose records say `what`; None if it is about something else."""
    return next((subject for subject in SUBJECTS.values() if subject.what == what), None)
