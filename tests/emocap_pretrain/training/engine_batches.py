"""Makes batches without a dataset: sample `row` of step `step` is the same on any rank."""

import torch

from emocap_pretrain.config.schema import Config
from emocap_pretrain.data.batch import Batch, Texts
from emocap_pretrain.data.tokenizer import Vocabulary

VOCABULARY = Vocabulary(320, 0)
LENGTH = 7


def batch_of(config: Config, step: int, rows: range) -> Batch:
    """Makes a batch in which sample r has r % 4 sentences, and texts have 3 to 7 tokens."""
    pixels = config.model.image.pixels
    sources = {row: torch.Generator().manual_seed(1000 * step + row) for row in rows}
    owner = [number for number, row in enumerate(rows) for _ in range(row % 4)]
    images = [torch.randint(256, (3, pixels, pixels), generator=each, dtype=torch.uint8) for each in sources.values()]
    one_each, summaries = ([_text(sources[row]) for row in rows] for _ in range(2))
    sentences = [_text(sources[rows[each]]) for each in owner]
    return Batch(
        images=torch.stack(images) if images else torch.empty((0, 3, pixels, pixels), dtype=torch.uint8),
        texts={
            "global": _texts(one_each, identity=[row // 2 for row in rows]),
            "summary": _texts(summaries, identity=list(rows)),
            "local": _texts(sentences, owner=owner),
        },
    )


def rows_of(rank: int, ranks: int, rows: int) -> range:
    return range(rows * rank // ranks, rows * (rank + 1) // ranks)


def _text(source: torch.Generator) -> tuple[torch.Tensor, int]:
    return torch.randint(1, 320, (LENGTH,), generator=source), int(torch.randint(3, LENGTH + 1, (), generator=source))


def _texts(texts: list[tuple[torch.Tensor, int]], **numbers: list[int]) -> Texts:
    mask = torch.arange(LENGTH) < torch.tensor([length for _, length in texts], dtype=torch.int64).view(-1, 1)
    ids = torch.stack([ids for ids, _ in texts]) if texts else torch.empty((0, LENGTH), dtype=torch.int64)
    return Texts(ids * mask, mask, **{name: torch.tensor(each, dtype=torch.int64) for name, each in numbers.items()})
