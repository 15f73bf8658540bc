"""Exports a model as two ONNX graphs, one for images and one for texts, for any batch size and length of text."""

import io
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from emocap_pretrain.interop.export.accessories import write_accessories
from emocap_pretrain.interop.export.formats import ExportFormat, without_head
from emocap_pretrain.interop.export.graphs import graphs_of
from emocap_pretrain.interop.restore import Restored

# Larger weights are written into a file beside the graph, because a protobuf file can have at most 2 GiB.
_INSIDE_BYTES = 1 << 30


def write(restored: Restored, folder: Path) -> None:
    for graph in graphs_of(restored.model, longest=restored.model.prompt_length):
        size = sum(each.numel() * each.element_size() for each in graph.module.state_dict().values())
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                graph.module,
                (),
                folder / f"{graph.name}.onnx",
                kwargs=dict(graph.example),
                dynamo=True,
                dynamic_shapes=dict(graph.dynamic),
                input_names=list(graph.example),
                output_names=list(graph.outputs),
                external_data=size > _INSIDE_BYTES,
                verbose=False,
            )
    write_accessories(restored, folder)


@contextmanager
def _quiet() -> Generator[None]:
    """Hides what the exporter prints and logs, such as its progress and the names of axes that it merges."""
    logger = logging.getLogger("onnx_ir")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


FORMAT = ExportFormat(
    name="onnx",
    about="Two ONNX graphs, image.onnx and text.onnx, which onnxruntime and other engines run.",
    library="onnxruntime",
    modules={"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
    write=write,
    lacks=without_head,
    loading="""\
import numpy as np, onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

face = ImageOps.fit(Image.open("face.jpg").convert("RGB"), ({pixels}, {pixels}), Image.Resampling.BICUBIC)
texts = Tokenizer.from_file("tokenizer.json").encode_batch(["a happy face", "a sad face"])
tokens = {{"input_ids": [each.ids for each in texts], "attention_mask": [each.attention_mask for each in texts]}}
images = {{"images": np.asarray(face).transpose(2, 0, 1)[None]}}
image, patches = onnxruntime.InferenceSession("image.onnx").run(None, images)
text, sentence, scale, local_scale, bias = onnxruntime.InferenceSession("text.onnx").run(None, tokens)
print(scale * image @ text.T + bias)
""",
)
