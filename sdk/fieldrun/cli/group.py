"""The command `fieldrun`: finds its sub-commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO

import click

from fieldrun._version import __version__
from fieldrun.errors import FieldrunError, StorageError

from .options import examples
from .output import flush, hush, note, one_line, put_json, tolerate_encodings, warn

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": "run:run",
    "label": "label:label",
    "field": "field:field",
    "serve": "serve:serve",
    "check": "check:check",
    "fit": "fit:fit",
    "eval": "evaluate:evaluate",
    "info": "describe:info",
    "tasks": "describe:tasks",
    "verify": "verify:verify",
    "install": "install:install",
    "export": "export:export",
    "compress": "compress:compress",
    "import-encoder": "import_encoder:import_encoder",
    "distill": "distill:distill",
    "build": "build:build",
    "cache": "cache:cache",
    "bench": "bench:bench",
    "report": "report:report",
    "doctor": "doctor:doctor",
}
"""Every command in the order of the help, and its module and function."""

RESUMABLE = ("label", "compress", "distill", "build")
"""Commands that continue where they were interrupted."""


INTERRUPTED = 130  # what a shell reports after Ctrl-C
READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ended


class FieldrunGroup(click.Group):
    """A group that imports a command's module when the command is called, and handles every `FieldrunError`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command `cmd_name`, None if there is no such command."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(f"fieldrun.cli.{module}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that stops reading (`| head`) ends it silently."""
        try:
            result = super().invoke(ctx)
            flush()
        except BrokenPipeError:
            hush()
            ctx.exit(READER_LEFT)
        return result

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse `args`, run the command and exit. An unexpected error keeps its traceback."""
        arguments = list(sys.argv[1:] if args is None else args)
        tolerate_encodings()
        warnings.showwarning = _show_warning
        extra["windows_expand_args"] = windows_expand_args
        prog_name = prog_name or "fieldrun"
        if not standalone_mode:
            return super().main(arguments, prog_name, complete_var, False, **extra)
        as_json = "--json" in arguments[: arguments.index("--") if "--" in arguments else None]
        try:
            code = super().main(arguments, prog_name, complete_var, False, **extra)
        except FieldrunError as error:
            code = _report(error, str(error), error.exit_code, as_json)
        except OSError as error:  # help and version are written before a command is invoked
            if error.errno != errno.ENOSPC:
                raise
            full = StorageError("cannot write to stdout: no space left on device; choose another place")
            code = _report(full, str(full), full.exit_code, as_json)
        except click.ClickException as error:
            code = error.exit_code
            error.show()
            if as_json:
                _report_json(error, error.format_message(), code)
        except click.Abort as error:
            if not isinstance(error.__cause__, KeyboardInterrupt):
                raise
            if arguments and arguments[0] in RESUMABLE:
                warn(f"interrupted; to continue: {shlex.join(['fieldrun', *arguments])}")
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, message: str, code: int, as_json: bool) -> int:
    try:
        warn(f"error: {message}")
        if as_json:
            _report_json(error, message, code)
    except (FieldrunError, OSError):  # stdout or stderr itself failed: the exit code is all that is left to report
        hush()
    return code


def _report_json(error: Exception, message: str, code: int) -> None:
    put_json({"error": {"type": type(error).__name__, "message": one_line(message), "exit_code": code}})
    flush()


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show our own warnings as notes, and those of other packages as Python does."""
    if category is UserWarning:
        note(str(message))
    else:
        (file or sys.stderr).write(warnings.formatwarning(message, category, filename, lineno, line))


@click.group(
    cls=FieldrunGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples('fieldrun run --task sst2 "a film to remember"')
    + "\n\nExit codes: 0 done, 2 wrong arguments, 3 to 12 for one kind of error each, 130 interrupted.",
)
@click.version_option(__version__, prog_name="fieldrun", message="%(prog)s %(version)s", help="Show the version.")
def main() -> None:
    """Classify and embed text on small devices: text in, labels out, on a CPU, without torch.

    BUNDLE is a bundle folder. By default it is 'reference', the bundle that is shipped with fieldrun.
    """
