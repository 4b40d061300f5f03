"""The command `fieldrun` itself: finds its sub-commands, and turns errors into one line and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from fieldrun.errors import FieldrunError

from .options import examples
from .output import flush, hush, one_line, put_json, tolerate_encodings, warn

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "run": "fieldrun.cli.run:run",
    "field": "fieldrun.cli.field:field",
    "serve": "fieldrun.cli.serve:serve",
    "eval": "fieldrun.cli.evaluate:evaluate",
    "info": "fieldrun.cli.describe:info",
    "tasks": "fieldrun.cli.describe:tasks",
    "verify": "fieldrun.cli.verify:verify",
    "fit": "fieldrun.cli.fit:fit",
    "export": "fieldrun.cli.export:export",
    "import-encoder": "fieldrun.cli.import_encoder:import_encoder",
    "search": "fieldrun.cli.search:search",
    "build": "fieldrun.cli.build:build",
    "cache": "fieldrun.cli.cache:cache",
    "distill": "fieldrun.cli.distill:distill",
    "bench": "fieldrun.cli.bench:bench",
    "report": "fieldrun.cli.report:report",
    "doctor": "fieldrun.cli.doctor:doctor",
}
"""Every command, in the order of the help, with the place of its function."""

INTERRUPTED = 130  # what a shell reports after Ctrl-C
READER_LEFT = 141  # what a shell reports of a program that SIGPIPE ended


class FieldrunGroup(click.Group):
    """A group that imports a command's module when the command is called, and knows the error tree."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command `cmd_name`, None when there is none."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader that has gone away (`| head`) ends it in silence."""
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
        """Parse `args`, run the command and exit; an error nobody foresaw keeps its traceback."""
        arguments = list(sys.argv[1:] if args is None else args)
        tolerate_encodings()
        extra["windows_expand_args"] = windows_expand_args
        prog_name = prog_name or "fieldrun"
        if not standalone_mode:
            return super().main(arguments, prog_name, complete_var, False, **extra)
        as_json = "--json" in arguments[: arguments.index("--") if "--" in arguments else None]
        try:
            code = super().main(arguments, prog_name, complete_var, False, **extra)
        except FieldrunError as error:
            code = _report(error, str(error), error.exit_code, as_json)
        except click.ClickException as error:
            code = error.exit_code
            error.show()
            if as_json:
                _report_json(error, error.format_message(), code)
        except click.Abort as error:
            if not isinstance(error.__cause__, KeyboardInterrupt):
                raise
            code = INTERRUPTED
        sys.exit(code if isinstance(code, int) else 0)


def _report(error: Exception, message: str, code: int, as_json: bool) -> int:
    try:
        warn(f"error: {message}")
        if as_json:
            _report_json(error, message, code)
    except (FieldrunError, OSError):  # stdout or stderr is what failed: the exit code is all that is left to say
        hush()
    return code


def _report_json(error: Exception, message: str, code: int) -> None:
    put_json({"error": {"type": type(error).__name__, "message": one_line(message), "exit_code": code}})
    flush()


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from importlib import metadata

    try:
        click.echo(f"fieldrun {metadata.version('fieldrun')}")
    except metadata.PackageNotFoundError:
        click.echo("fieldrun (version unknown: not installed as a package)")
    ctx.exit()


@click.group(
    cls=FieldrunGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=examples('fieldrun run reference --task sst2 "a film to remember"')
    + "\n\nExit codes: 0 done, 2 wrong arguments, 3 to 12 one per kind of error, 130 interrupted.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def main() -> None:
    """Run meaning fields at the edge: text in, labels out, on a bare CPU.

    Wherever a BUNDLE is asked for, 'reference' is the one that comes with fieldrun.
    """
