"""Turns texts into token ids, with a tokenizer that is trained on the captions or read from a folder or the hub.

A checkpoint contains the tokenizer as JSON, so a resumed run and an evaluation never train or download it again. No
tokenizer is read from a pickle, and no code that comes with a tokenizer is executed.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from emocap_pretrain.config.location import located
from emocap_pretrain.data.batch import Texts
from emocap_pretrain.errors import ConfigError

PAD, START, END = "<|pad|>", "<|start|>", "<|end|>"


class Vocabulary(NamedTuple):
    """Holds two properties of a tokenizer that a text tower needs.

    `size` is one more than the largest token id, so an embedding table with `size` rows has a row for each token.
    `pad_id` is the id of the padding token.
    """

    size: int
    pad_id: int


class Tokenizer:
    """Wraps a fast Hugging Face tokenizer. A `Tokenizer` can be pickled for loader processes.

    Most tokenizers add a start and an end token to each text. `counts` and `encode` set the truncation of the wrapped
    tokenizer before they use it. So one object must not be used by two threads at a time. Each loader process has its
    own copy.
    """

    def __init__(self, fast: FastTokenizer) -> None:
        self._fast = fast
        fast.no_padding()  # `encode` pads; a stored tokenizer may pad to a fixed length of its own.
        # The ids may have gaps, and the vocabulary may lack the start and end tokens.
        ids = (*fast.get_vocab().values(), *fast.encode("a").ids)
        self._size = max(fast.get_vocab_size(), 1 + max(ids, default=0))

    @classmethod
    def trained_on(cls, texts: Iterable[str], vocabulary: int) -> "Tokenizer":
        """Trains byte-level BPE with `vocabulary` tokens on lower-cased texts. Equal texts give equal vocabularies.

        The result may have fewer than `vocabulary` tokens if the texts have too few distinct words.
        """
        fast = FastTokenizer(models.BPE())
        fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            # All 256 bytes are tokens, so a character that no caption had can still be encoded.
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
        """Reads a tokenizer from the text of a tokenizer.json, such as `to_json` returns.

        Raises:
            ConfigError: If the text is not a tokenizer.
        """
        try:
            return cls(FastTokenizer.from_str(text))
        except Exception as error:  # tokenizers has no error class of its own, and raises plain Exception.
            raise ConfigError(f"the tokenizer cannot be read: {_first_line(error)}.") from error

    @classmethod
    def load(cls, folder_or_name: str) -> "Tokenizer":
        """Reads the tokenizer.json of a folder, or the tokenizer that transformers finds under a hub name.

        Raises:
            ConfigError: If there is no tokenizer, or if it cannot be read.
        """
        source = located(folder_or_name, "model.text.tokenizer")
        file = Path(source) / "tokenizer.json"
        if file.exists():
            try:
                return cls.from_json(file.read_text(encoding="utf-8"))
            except (ConfigError, ValueError, OSError) as error:
                raise ConfigError(f"model.text.tokenizer={folder_or_name}: {_first_line(error)}") from error
        from transformers import AutoTokenizer

        try:
            found: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            # Without files, transformers returns a tokenizer that knows only its special tokens.
            if found.get_vocab().keys() <= set(found.all_special_tokens):
                raise ValueError("no vocabulary")
            return cls(found.backend_tokenizer)
        except (AttributeError, ImportError, OSError, ValueError) as error:
            raise ConfigError(f"model.text.tokenizer={folder_or_name}: {_missing(source, error)}") from error

    def to_json(self) -> str:
        """Returns the text of a tokenizer.json."""
        return self._fast.to_str()

    @property
    def vocabulary(self) -> Vocabulary:
        """Returns the size of the vocabulary and the id of the padding token.

        If the tokenizer has no padding token, the id is 0. This may be the id of another token, but the mask shows
        which tokens are padding.
        """
        # The names of the padding token in our own tokenizers, in those of BERT, and in those of RoBERTa.
        marks = (self._fast.token_to_id(mark) for mark in (PAD, "[PAD]", "<pad>"))
        return Vocabulary(self._size, next((each for each in marks if each is not None), 0))

    def id_of(self, token: str) -> int | None:
        """Returns the id of a token such as `</s>`; None if the tokenizer does not have it."""
        return self._fast.token_to_id(token)

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Returns the number of tokens of each text without truncation, including the start and end tokens."""
        # The fast variant of `encode_batch` leaves out the places of tokens in the text, which nothing here needs.
        self._fast.no_truncation()
        return [len(row.ids) for row in self._fast.encode_batch_fast(list(texts))]

    def encode(self, texts: Sequence[str], length: int) -> Texts:
        """Encodes texts and pads them at the end to the longest one. Every text has at least one token.

        If a tokenizer adds no start and end tokens, a text of blanks, or of characters that the tokenizer drops, has no
        tokens. Such a text becomes one padding token that counts as real in `mask`, because a tower needs at least one
        token to pool.

        Args:
            texts: The texts; an empty list gives tensors of shape [0, 1].
            length: Largest number of tokens of a text. A longer text is cut, and its end token is kept.

        Returns:
            The texts without `owner` and `identity`, on the CPU.
        """
        self._fast.enable_truncation(length)
        pad_id = self.vocabulary.pad_id
        rows = [row.ids or [pad_id] for row in self._fast.encode_batch_fast(list(texts))]
        longest = max(map(len, rows), default=1)
        ids = torch.full((len(rows), longest), pad_id, dtype=torch.int64)
        mask = torch.zeros((len(rows), longest), dtype=torch.bool)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[number, : len(row)] = True
        return Texts(ids, mask)


def byte_pair_tokenizer(merges: Sequence[Sequence[str]]) -> Tokenizer:
    """Returns the tokenizer of OpenAI's CLIP, built from the merges of its byte-pair encoding.

    `merges` holds the two parts of each merge, in the order in which they apply. The order of the vocabulary is that of
    OpenAI: all bytes, all bytes at the end of a word, the merges, and the start and end tokens.
    """
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    pairs: Any = [tuple(merge) for merge in merges]  # transformers declares another type than it takes.
    return Tokenizer(CLIPTokenizer(vocab=vocabulary, merges=pairs).backend_tokenizer)


def _missing(source: str, error: Exception) -> str:
    """Returns why no tokenizer was found, and what the user can do."""
    if Path(source).is_dir():
        return (
            "the folder has no tokenizer.json and no other tokenizer: save the tokenizer of the model into it, or set "
            "model.text.tokenizer to a folder that has one."
        )
    return (
        f"there is no such folder, and the hub did not send a tokenizer of this name ({_first_line(error)}): set "
        "model.text.tokenizer to a folder with a tokenizer.json."
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
