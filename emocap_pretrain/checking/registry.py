"""Lists the checks that `emocap check` makes. A further check is one more line."""

from emocap_pretrain.checking.agreement import AgreementCheck
from emocap_pretrain.checking.check import CaptionCheck
from emocap_pretrain.checking.claims import claim_values
from emocap_pretrain.checking.population import FacePopulation
from emocap_pretrain.checking.texts.settings import TextChecksConfig, text_checks


def all_checks(population: FacePopulation | None) -> tuple[CaptionCheck, ...]:
    """Returns all checks; without a population of faces, those of the texts alone."""
    return (
        *((AgreementCheck(population=population),) if population else ()),
        *text_checks(TextChecksConfig(), claims_of=claim_values),
    )
