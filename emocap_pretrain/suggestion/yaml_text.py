"""Writes settings as commented YAML that the config loader reads back to equal values."""

import re
import textwrap
from collections.abc import Iterable
from typing import Any

import yaml

from emocap_pretrain.suggestion.settings import Block

WIDTH = 120
# Texts that no reader of YAML takes for anything else. All other texts are quoted: the loader reads 1e3 as a number,
# and PyYAML writes it without quotes.
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./:-]*[A-Za-z0-9_/]|[A-Za-z]")
_WORDS = re.compile("true|false|yes|no|on|off|null|y|n|nan|inf|[0-9._]*e[0-9]+|.*: ?$", re.IGNORECASE)


class _Dumper(yaml.SafeDumper):
    """Writes short lists and mappings in one line, and quotes texts that could be taken for another type."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    is_plain = bool(_PLAIN.fullmatch(value)) and not _WORDS.fullmatch(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if is_plain else '"')


_Dumper.add_representer(str, _text)


def written(blocks: Iterable[Block]) -> str:
    """Returns the blocks as one YAML document. The comment of a block comes before its settings.

    Raises:
        ValueError: If a text contains `${`, which the config loader would resolve.
    """
    parts: list[str] = []
    for block in blocks:
        _refuse_interpolations(block.settings)
        comment = "\n".join(
            textwrap.wrap(block.comment, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        )
        comment = "\n".join([*([comment] if comment else []), *(f"#   {line}" for line in block.commands)])
        settings = yaml.dump(block.settings, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
        parts.append(f"{comment}\n{settings}" if comment else settings)
    return "\n".join(parts)


def commented(blocks: Iterable[Block], heading: str, lines: Iterable[str]) -> str:
    """Returns the blocks as `written` does, with a list of comments after them; nothing is added for an empty list.

    Raises:
        ValueError: As `written` does.
    """
    listed = [
        textwrap.fill(" ".join(line.split()), WIDTH, initial_indent="# - ", subsequent_indent="#   ") for line in lines
    ]
    return "\n".join([written(blocks), f"# {heading}", *listed, ""]) if listed else written(blocks)


def _refuse_interpolations(node: Any) -> None:
    if isinstance(node, str) and "${" in node:
        raise ValueError(f"the name {node!r} contains ${{, which a config would resolve: rename it")
    children = [*node, *node.values()] if isinstance(node, dict) else node if isinstance(node, list) else []
    for each in children:
        _refuse_interpolations(each)
