"""`fieldrun verify`: does a bundle still give, on this machine, what its export measured?"""

from __future__ import annotations

import click

from fieldrun.errors import ParityError

from .options import bundle_argument, engine_options, examples, json_option
from .output import put_json, put_table, warn

__all__ = ["verify"]


@click.command(
    short_help="Check a bundle's answers on this machine.", epilog=examples("fieldrun verify reference --engine numpy")
)
@bundle_argument(default="reference")
@engine_options
@json_option
@click.pass_context
def verify(ctx: click.Context, bundle: str, engine: str, provider: str | None, threads: int, as_json: bool) -> None:
    """Replay the golden texts of a bundle and compare fields and scores with those of the export.

    Ends with exit code 8 when they differ by more than the bundle's tolerance.
    """
    import fieldrun

    report = fieldrun.verify(bundle, engine=engine, provider=provider, threads=threads)
    value = report.to_dict()
    if as_json:
        put_json(value)
    else:
        put_table([(key.replace("_", " "), item) for key, item in value.items() if not isinstance(item, dict | list)])
    if not report.passed:
        warn("error: the bundle does not give its golden values on this machine; copy it again or export it here")
        ctx.exit(ParityError.exit_code)
