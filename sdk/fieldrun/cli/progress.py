"""How far a long command is, on stderr: a bar on a terminal, a line now and then in a log, both with the time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from fieldrun.formats.progress import Progress

__all__ = ["progress"]

_EVERY_S = 10.0  # between two lines in a log
_REDRAW_S = 0.1
_WIDTH = 30  # characters of the bar


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a callback that is called with (phase, done, total)."""
    terminal = sys.stderr.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            with _rich_bars() as update:
                yield update
            return
    lines = _Lines(terminal)
    try:
        yield lines.update
    finally:
        lines.clear()


@contextlib.contextmanager
def _rich_bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in known:
                known[phase] = bars.add_task(phase, total=total)
            bars.update(known[phase], completed=done, total=total)

        yield update


class _Lines:
    """Text alone: one line that is drawn again on a terminal, or a new line every ten seconds in a log."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal
        self._phase: str | None = None
        self._began = self._shown = time.monotonic()
        self._first = 0

    def update(self, phase: str, done: int, total: int) -> None:
        now = time.monotonic()
        if phase != self._phase:
            self._phase, self._began, self._first = phase, now, done
        if now - self._shown < (_REDRAW_S if self._terminal else _EVERY_S):
            return
        self._shown = now
        left = _left(done - self._first, total - done, now - self._began)
        if self._terminal:
            bar = "#" * (_WIDTH * done // max(1, total))
            sys.stderr.write(f"\r\x1b[K{phase} [{bar:<{_WIDTH}}] {done}/{total}{left}")
        else:
            sys.stderr.write(f"fieldrun: {phase} {done}/{total}{left}\n")
        sys.stderr.flush()

    def clear(self) -> None:
        """Delete the line on the terminal."""
        if self._terminal:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _left(done: int, to_do: int, seconds: float) -> str:
    """Return the time left at the speed so far, "" while nothing is done."""
    if done <= 0:
        return ""
    minutes, rest = divmod(round(seconds / done * to_do), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours}:{minutes:02}:{rest:02} left" if hours else f", {minutes}:{rest:02} left"
