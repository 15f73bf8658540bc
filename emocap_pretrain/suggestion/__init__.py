"""Suggests a config for a user's data and hardware (`emocap init`).

`examination` looks at the data, `hardware` at this host, `settings` derives the settings from both without reading
anything, and `yaml_text` writes them as commented YAML.
"""

from emocap_pretrain.suggestion.examination import DataFacts, examine, splits_of
from emocap_pretrain.suggestion.hardware import Hardware, hardware_here
from emocap_pretrain.suggestion.settings import Block, Suggestion, WeightsChoice, suggest
from emocap_pretrain.suggestion.yaml_text import written

__all__ = [
    "Block",
    "DataFacts",
    "Hardware",
    "Suggestion",
    "WeightsChoice",
    "examine",
    "hardware_here",
    "splits_of",
    "suggest",
    "written",
]
