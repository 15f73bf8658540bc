"""Names the file with the sentences of the action units of FACS, which `emocap predict` and an evaluation use."""

from pathlib import Path

FACS = Path(__file__).with_name("facs.yaml")
