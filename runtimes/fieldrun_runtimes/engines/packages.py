"""Packages that are imported when first needed: a missing one and a broken one are different errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from fieldrun.errors import EngineError, MissingDependency

__all__ = ["importing"]


@contextlib.contextmanager
def importing(module: str, missing: MissingDependency) -> Iterator[None]:
    """Translate the errors of the import of `module` in the block.

    Raises:
        MissingDependency: `missing`, if the module or its parent package is not installed.
        EngineError: it is installed and cannot be imported; the message quotes the reason.
    """
    try:
        yield
    except Exception as error:  # a broken package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise missing from error
        words = " ".join(str(error).split()) or type(error).__name__
        raise EngineError(
            f"{missing.package} is installed and cannot be imported: {words}; install it again"
        ) from error
