"""What a request may ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields

from fieldrun.errors import UsageError

__all__ = ["Limits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of one request, and of all requests together.

    `body_bytes` of a request body, `texts` (or pairs) in it, `characters` of one text, and `seconds` from its first
    byte to its answer. `requests` is how many may be read or answered at once; the next one is refused with status 503.
    Together they bound the memory: at most `requests * body_bytes` of bodies wait.

    Raises:
        UsageError: a limit is not positive.
    """

    body_bytes: int = 1_000_000
    texts: int = 1024
    characters: int = 20_000
    seconds: float = 10.0
    requests: int = 128

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kinds = int | float if field.name == "seconds" else int
            if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise UsageError(f"the limit {field.name} must be a positive number, not {value!r}")
