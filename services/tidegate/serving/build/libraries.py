"""The libraries that only building needs: imported when used, and kept from printing.

Exporters and converters print a lot. Their output is held back, and shown only if they fail.
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
    """Captures what Python code prints, warns and logs in the block.

    An exception that leaves the block carries the end of this output as a note.
    """
    captured = io.StringIO()
    logging_was_off_at = logging.root.manager.disable
    with redirect_stdout(captured), redirect_stderr(captured), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield captured
        except Exception as error:
            if text := captured.getvalue()[-2000:].strip():
                error.add_note(f"Before it failed, the library printed:\n{text}")
            raise
        finally:
            logging.disable(logging_was_off_at)


def required(module: str, package: str | None = None) -> ModuleType:
    """Imports a module that only building needs.

    Args:
        module: The module.
        package: Its distribution, if the names differ.

    Raises:
        MissingPackageError: The package is missing; the message has the command to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        root = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != root:
            # The module exists, but a module that it imports does not.
            raise MissingPackageError(error.name) from error
        raise MissingPackageError(package or module) from error
