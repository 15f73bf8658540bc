"""Writes files that options name, such as HTML pages."""

import os
import uuid
from pathlib import Path
from tempfile import TemporaryFile

from emocap_pretrain.errors import ConfigError


def check_writable(option: str, path: Path) -> None:
    """Checks that a file can be written. A command calls this before it computes what the file is to hold.

    Args:
        option: The option that names the file, for the message.
        path: The file.

    Raises:
        ConfigError: If the file cannot be written.
    """
    try:
        if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
            raise _unwritable(option, path, "it exists and is not a file that you may write")
        with TemporaryFile(dir=path.resolve().parent):
            pass
    except OSError as error:
        raise _unwritable(option, path, error) from error


def check_picture(path: Path) -> None:
    """Checks that the file of `--picture` can be written. A command calls this before it computes the picture.

    Raises:
        ConfigError: If the file cannot be written, or its name is not that of a PNG.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--picture {path}: the picture is a PNG; give a name that ends in .png.")
    check_writable("--picture", path)


def write_text(option: str, path: Path, text: str) -> None:
    """Writes a text file. An existing file is replaced only after the new one is complete.

    Raises:
        ConfigError: If the file cannot be written.
    """
    target = path.resolve()  # If the path is a link, the file that it points to is replaced.
    temporary = target.with_name(f".page-{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:  # "x" does not follow a link of this name.
            file.write(text)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(option, path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _unwritable(option: str, path: Path, why: object) -> ConfigError:
    return ConfigError(f"{option} {path}: it cannot be written ({why}); give a file in a folder that you may write.")
