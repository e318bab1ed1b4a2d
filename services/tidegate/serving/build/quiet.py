"""Silence for libraries that print: exporters and converters talk, and none of it is ours to say.

What they say is kept and shown if they fail, so a failure still has its reasons.
"""

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import ModuleType

from tidegate.serving.build.errors import MissingPackageError

__all__ = ["quietly", "required"]


@contextmanager
def quietly() -> Iterator[io.StringIO]:
    """Holds back what Python code prints, warns and logs; the block's output is the value.

    An exception that leaves the block carries the last of it as a note.
    """
    heard = io.StringIO()
    logging_was_off_at = logging.root.manager.disable
    with redirect_stdout(heard), redirect_stderr(heard), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield heard
        except Exception as error:
            if text := heard.getvalue()[-2000:].strip():
                error.add_note(f"Before it failed, the library printed:\n{text}")
            raise
        finally:
            logging.disable(logging_was_off_at)


def required(module: str, package: str | None = None) -> ModuleType:
    """Imports a module that only building needs.

    Args:
        module: what to import.
        package: the distribution that brings it, where the names differ.

    Raises:
        MissingPackageError: it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            # The module is there; something that it needs is not.
            raise MissingPackageError(error.name) from error
        raise MissingPackageError(package or module) from error
