"""Batches without a dataset: sample `row` of step `step` is the same whoever holds it."""

import torch

from emocap_pretrain.batch import Batch, Tokens
from emocap_pretrain.config.schema import Config
from emocap_pretrain.tokenizer import Vocabulary

VOCABULARY = Vocabulary(320, 0)
LENGTH = 7


def batch_of(config: Config, step: int, rows: range) -> Batch:
    """Sample r has r % 4 sentences; texts are of 3 to 7 tokens."""
    pixels = config.model.image.pixels
    sources = {row: torch.Generator().manual_seed(1000 * step + row) for row in rows}
    owner = [number for number, row in enumerate(rows) for _ in range(row % 4)]
    images = [torch.randint(256, (3, pixels, pixels), generator=each, dtype=torch.uint8) for each in sources.values()]
    whole, summary = ([_text(sources[row]) for row in rows] for _ in range(2))
    sentences = [_text(sources[rows[each]]) for each in owner]
    return Batch(
        images=torch.stack(images) if images else torch.empty((0, 3, pixels, pixels), dtype=torch.uint8),
        whole=_tokens(whole),
        summary=_tokens(summary),
        sentences=_tokens(sentences),
        owner=torch.tensor(owner, dtype=torch.int64),
        whole_ids=torch.tensor([row // 2 for row in rows], dtype=torch.int64),
        summary_ids=torch.tensor(list(rows), dtype=torch.int64),
    )


def rows_of(rank: int, ranks: int, rows: int) -> range:
    return range(rows * rank // ranks, rows * (rank + 1) // ranks)


def _text(source: torch.Generator) -> tuple[torch.Tensor, int]:
    return torch.randint(1, 320, (LENGTH,), generator=source), int(torch.randint(3, LENGTH + 1, (), generator=source))


def _tokens(texts: list[tuple[torch.Tensor, int]]) -> Tokens:
    if not texts:
        return Tokens(torch.empty((0, LENGTH), dtype=torch.int64), torch.empty((0, LENGTH), dtype=torch.bool))
    mask = torch.arange(LENGTH) < torch.tensor([[length] for _, length in texts])
    return Tokens(torch.stack([ids for ids, _ in texts]) * mask, mask)
