"""Hands a trained model on to other libraries, with its tokenizer, its image processor and a model card.

`exporting.export` writes a model in one of the formats of `registry.FORMATS`. Each format is a module with a function
that writes the files. `verify` then runs `fresh_process.py` in a process of its own, which loads the files with the
library of the format alone, and compares the vectors. docs/export.md describes the formats, and decision 34 the
choices.
"""

import emocap_torchvision

emocap_torchvision.install()  # Before any module of this package imports transformers, which imports torchvision.
