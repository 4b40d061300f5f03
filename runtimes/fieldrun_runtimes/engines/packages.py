"""Packages that are imported when they are first needed: which is missing and which is broken is told apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fieldrun.errors import EngineError, MissingDependency

__all__ = ["importing"]


@contextlib.contextmanager
def importing(module: str, missing: MissingDependency) -> Iterator[None]:
    """Watch over the import of `module` in the block.

    Raises:
        MissingDependency: `missing`, where the module or a package around it is not there.
        EngineError: it is there and cannot be imported; the message has its own words.
    """
    try:
        yield
    except Exception as error:  # what a broken package raises is its own affair
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise missing from error
        words = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(
            f"{missing.package} is installed and cannot be imported: {words}; install it again"
        ) from error
