"""Checks the environment of a run: this host, the services that the run uses, and the installed versions.

`diagnosis.CHECKS` lists all checks. Each check is a function that takes the `DoctorInputs` and returns results. A check
never raises an error about what it examines: a service that does not answer is a result with the status "fail".
"""

from emocap_pretrain.doctor.diagnosis import CHECKS, diagnose
from emocap_pretrain.doctor.result import CheckResult, DoctorInputs, Status

__all__ = ["CHECKS", "CheckResult", "DoctorInputs", "Status", "diagnose"]
