"""Turns texts into token ids, with a tokenizer trained on the captions or one from a folder or hub name."""

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
    """Holds what a text tower needs of its tokenizer: one more than the largest token id, and the padding id."""

    size: int
    pad_id: int


class Tokenizer:
    """A fast tokenizer of Hugging Face that adds its start and end tokens. It can be pickled, for loader processes."""

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        fast.no_padding()
        # There may be gaps between the ids, and the start and end tokens may be missing in the vocabulary.
        ids = (*fast.get_vocab().values(), *fast.encode("a").ids)
        self._size = max(fast.get_vocab_size(), 1 + max(ids, default=0))

    @classmethod
    def trained_on(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Trains byte-level BPE on lower-cased texts; the same texts give the same vocabulary.

        Args:
            texts: The texts to train on.
            vocabulary: Number of tokens.
        """
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
        """Reads a tokenizer from what `to_json` returned, or from the text of a tokenizer.json.

        Raises:
            ConfigError: If the text is not a tokenizer.
        """
        try:
            return cls(FastTokenizer.from_str(text))
        except Exception as error:
            raise ConfigError(f"the tokenizer cannot be read: {_first_line(error)}.") from error

    @classmethod
    def load(cls, folder_or_name: str) -> "Tokenizer":
        """Reads the tokenizer.json of a folder, or the tokenizer that transformers finds under a hub name.

        Raises:
            ConfigError: If there is none.
        """
        file = Path(folder_or_name) / "tokenizer.json"
        if file.exists():
            try:
                return cls.from_json(file.read_text(encoding="utf-8"))
            except (ConfigError, ValueError, OSError) as error:
                raise ConfigError(f"model.text.tokenizer={folder_or_name}: {_first_line(error)}") from error
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(folder_or_name, trust_remote_code=False).backend_tokenizer)
        except (OSError, ValueError) as error:
            where = f"model.text.tokenizer={folder_or_name}"
            raise ConfigError(f"{where}: no tokenizer.json there, none from the hub ({_first_line(error)}).") from error

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json."""
        return self._fast.to_str()

    @property
    def vocabulary(self) -> Vocabulary:
        """Size and padding id; the padding id is 0 if the tokenizer has none, since padding is masked."""
        marks = (self._fast.token_to_id(mark) for mark in (PAD, "[PAD]", "<pad>"))
        return Vocabulary(self._size, next((each for each in marks if each is not None), 0))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text without truncation, start and end tokens included."""
        self._fast.no_truncation()
        return [len(row.ids) for row in self._fast.encode_batch_fast(list(texts))]

    def encode(self, texts: Sequence[str], length: int) -> Texts:
        """Encodes texts, padded to the longest of them.

        Args:
            texts: The texts; none give tensors of shape [0, 1].
            length: Most tokens of a text. A longer text is cut, and keeps its end token.
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


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
