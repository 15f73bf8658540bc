"""Renders HTML pages from templates of jinja2. The pages load nothing from the network and execute no script."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined

from emocap_shards.printable import printable


def rendered(
    package: tuple[str, str],
    template: str,
    style: str,
    values: Mapping[str, Any],
    filters: Mapping[str, Callable[..., Any]],
) -> str:
    """Returns the HTML text of a page that is made from a template of jinja2.

    The template gets all entries of `values` as variables, and also the variables `style` (the style sheet) and
    `style_hash` (its hash). It must contain a Content-Security-Policy that forbids all scripts and all styles except
    the one with the hash `style_hash`. So text from the data, which is escaped, cannot run as a script either way, and
    the template must not use attributes named `style`.

    Args:
        package: The name of the package with the template, and the folder of the template in this package.
        template: The file name of the template.
        style: The style sheet.
        values: The variables of the template, by their names.
        filters: Filters that the template uses in addition to those of jinja2, by their names.
    """
    # The data are untrusted, so everything is escaped by default.
    environment = Environment(
        loader=PackageLoader(*package),
        autoescape=True,
        finalize=_as_text,
        # A misspelt variable of the template is an error, and not an empty text.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    cast("dict[str, Any]", environment.filters).update(filters)
    return environment.get_template(template).render(**values, style=style, style_hash=_style_hash(style))


def shared_style() -> str:
    """Returns the style sheet of all pages, which follows the light or dark scheme of the reader."""
    return resources.files("emocap_shards.inspecting").joinpath("page.css").read_text("utf-8")


def _as_text(value: Any) -> Any:
    """Returns what the template prints for the value of an expression.

    A plain `str` comes from the data: characters that cannot be printed are replaced. Any other value, such as the
    markup of a filter, is returned unchanged.
    """
    # The type is compared exactly, because jinja2's markup is a subclass of str.
    return printable(value, lines=True) if type(value) is str else value


def _style_hash(style: str) -> str:
    """Returns the SHA-256 of a style sheet in base64, by which a Content-Security-Policy allows this style alone."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
