"""Defines `export.json`, which describes an export and its differences from the trained model."""

from collections.abc import Mapping
from dataclasses import dataclass

from emocap_pretrain.run_folder.results import Count, Finite
from emocap_pretrain.run_folder.storage import DocumentKind

EXPORT_FILE = "export.json"


@dataclass(frozen=True, slots=True)
class ExportDocument:
    """Holds `export.json`, which is written last into the folder of an export.

    Args:
        format: Name of the format, such as "onnx".
        name: Name of the run.
        step: Number of optimizer steps after which the model was saved.
        run_id: MLflow's id of the run.
        data_digest: Digest of the datasets of the run.
        differences: The largest differences from the trained model, by the name of the result.
        bound: Largest difference of unit vectors that is allowed.
        lacks: One line for each part of the model that the format cannot hold.
        versions: Versions of the libraries that wrote and compared the export.
    """

    format: str
    name: str = ""
    step: Count = 0
    run_id: str = ""
    data_digest: str = ""
    differences: Mapping[str, Finite] | None = None
    bound: Finite = 0.0
    lacks: tuple[str, ...] = ()
    versions: Mapping[str, str] | None = None


EXPORT = DocumentKind(ExportDocument)
