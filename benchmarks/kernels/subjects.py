"""The losses that the command can measure, by their names on the command line."""

from __future__ import annotations

from collections.abc import Mapping

from .global_loss import GLOBAL
from .local_loss import REGION
from .subject import Subject

SUBJECTS: Mapping[str, Subject] = {subject.name: subject for subject in (GLOBAL, REGION)}
