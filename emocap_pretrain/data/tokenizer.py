"""Text to token ids: a tokenizer trained on the captions themselves, or one from a folder or a hub name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from emocap_pretrain.data.batch import Texts
from emocap_pretrain.errors import ConfigError

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"


class Vocabulary(NamedTuple):
    """What a text tower must know of its tokenizer: one more than the largest token id, and the id that pads."""

    size: int
    pad_id: int


class Tokenizer:
    """A fast tokenizer whose texts end in its own end mark; picklable, so loader processes can hold it."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        fast.no_padding()
        # There may be gaps between the ids, and the marks of start and end have ids of their own.
        ids = (*fast.get_vocab().values(), *fast.encode("a").ids)
        self._size = max(fast.get_vocab_size(), 1 + max(ids, default=0))

    @classmethod
    def trained_on(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Byte-level BPE in lower case; the same texts give the same vocabulary."""
        fast = FastTokenizer(models.BPE())
        fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        fast.train_from_iterator(texts, trainer)
        fast.post_processor = processors.TemplateProcessing(
            single=f"{START} $A {END}",
            special_tokens=[(mark, fast.token_to_id(mark)) for mark in (START, END)],
        )
        return cls(fast)

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read what `to_json` gave, or the tokenizer.json of a folder.

        Raises:
            ConfigError: If it is no tokenizer.
        """
        try:
            return cls(FastTokenizer.from_str(text))
        except Exception as error:
            raise ConfigError(f"the tokenizer cannot be read: {_first(error)}.") from error

    @classmethod
    def load(cls, folder_or_name: str) -> "Tokenizer":
        """The tokenizer.json of a folder, or the one that transformers finds under a hub name.

        Raises:
            ConfigError: If there is none.
        """
        file = Path(folder_or_name) / "tokenizer.json"
        if file.exists():
            try:
                return cls.from_json(file.read_text(encoding="utf-8"))
            except (ConfigError, ValueError, OSError) as error:
                raise ConfigError(f"model.text.tokenizer={folder_or_name}: {_first(error)}") from error
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(folder_or_name, trust_remote_code=False).backend_tokenizer)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"model.text.tokenizer={folder_or_name}: no tokenizer.json there, none from the hub ({_first(error)})."
            ) from error

    def to_json(self) -> str:
        return self._fast.to_str()

    @property
    def vocabulary(self) -> Vocabulary:
        marks = (self._fast.token_to_id(mark) for mark in (PAD, "[PAD]", "<pad>"))
        return Vocabulary(self._size, next((each for each in marks if each is not None), 0))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text in full length, with its marks."""
        self._fast.no_truncation()
        return [len(row.ids) for row in self._fast.encode_batch_fast(list(texts))]

    def encode(self, texts: Sequence[str], length: int) -> Texts:
        """Ids padded to the longest of these texts; longer than `length` is cut, the end mark stays.

        No text gives tensors of shape [0, 1].
        """
        self._fast.enable_truncation(length)
        rows = self._fast.encode_batch_fast(list(texts))
        longest = max((len(row.ids) for row in rows), default=1)
        ids = torch.full((len(rows), longest), self.vocabulary.pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)] = torch.tensor(row.ids, dtype=torch.int64)
            mask[number, : len(row.ids)] = True
        return Texts(ids, mask)


def _first(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
