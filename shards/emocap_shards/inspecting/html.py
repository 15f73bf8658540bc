"""Renders HTML pages that load nothing from the network and contain no script."""

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
    """Returns a page. The template gets the variables `values`, `style` and `style_hash`.

    Text from the data is escaped. Such text cannot run as a script, because the Content-Security-Policy that the
    template must contain forbids all scripts. The policy allows the style with the hash `style_hash` and no other, so
    the template must not use attributes named `style`.

    Args:
        package: The package and the folder in it that contain the template.
        template: The file name of the template.
        style: The style sheet.
        values: The variables.
        filters: Further filters.
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
    """Returns a value as the template prints it.

    A plain `str` comes from the data and is made printable. Markup of the template has another type, and is returned
    unchanged.
    """
    # The type is compared exactly, because jinja2's markup is a subclass of str.
    return printable(value, lines=True) if type(value) is str else value


def _style_hash(style: str) -> str:
    """Returns the hash of the page's style, by which the Content-Security-Policy allows this style and no other."""
    return base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
