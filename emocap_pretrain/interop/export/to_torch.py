"""Exports a model as two programs of `torch.export`, which torch runs without any code of ours or of the towers.

A state dict alone (the format `safetensors`) is useless without our classes. A program holds the weights and the
operators, for any batch size and length of text, and runs on every device that torch supports.
"""

from pathlib import Path

import torch

from emocap_pretrain.interop.export.accessories import write_accessories
from emocap_pretrain.interop.export.formats import ExportFormat, without_head
from emocap_pretrain.interop.export.graphs import graphs_of
from emocap_pretrain.interop.restore import Restored


def write(restored: Restored, folder: Path) -> None:
    for graph in graphs_of(restored.model, longest=restored.model.prompt_length):
        with torch.no_grad():
            program = torch.export.export(graph.module, (), dict(graph.example), dynamic_shapes=dict(graph.dynamic))
        torch.export.save(program, folder / f"{graph.name}.pt2")
    write_accessories(restored, folder)


FORMAT = ExportFormat(
    name="torch",
    about="Two programs of torch.export, image.pt2 and text.pt2, which need no code besides torch.",
    library="torch",
    modules={"torch": "torch"},
    write=write,
    lacks=without_head,
    loading="""\
import numpy as np, torch
from PIL import Image, ImageOps
from tokenizers import Tokenizer

face = ImageOps.fit(Image.open("face.jpg").convert("RGB"), ({pixels}, {pixels}), Image.Resampling.BICUBIC)
images = torch.from_numpy(np.asarray(face).copy()).permute(2, 0, 1)[None]
texts = Tokenizer.from_file("tokenizer.json").encode_batch(["a happy face", "a sad face"])
ids, mask = (torch.tensor([getattr(each, name) for each in texts]) for name in ("ids", "attention_mask"))
image, patches = torch.export.load("image.pt2").module()(images=images)
text, sentence, scale, local_scale, bias = torch.export.load("text.pt2").module()(input_ids=ids, attention_mask=mask)
print((scale * image @ text.T + bias).softmax(-1))
""",
)
