"""`fieldrun install`: put a bundle in the place of another one, proven and in one step."""

from __future__ import annotations

import click

from fieldrun.errors import UsageError

from .options import engine_options, examples, json_option
from .output import put, put_json

__all__ = ["install"]


@click.command(
    short_help="Put a bundle in place, proven and in one step.",
    epilog=examples(
        "fieldrun install new-bundle /var/lib/fieldrun/bundle", "fieldrun install --rollback /var/lib/fieldrun/bundle"
    ),
)
@click.argument("source", metavar="BUNDLE", required=False)
@click.argument("into", required=False)
@click.option("--rollback", is_flag=True, help="Go back to the bundle that the last install replaced.")
@engine_options
@json_option
def install(
    source: str | None,
    into: str | None,
    rollback: bool,
    engine: str,
    provider: str | None,
    threads: int,
    as_json: bool,
) -> None:
    """Copy BUNDLE beside the folder INTO, check its answers there, and exchange the two folders in one step.

    A copy onto a folder in use (cp, scp, rsync) is a mixture of two bundles while it lasts. The bundle that stood at
    INTO is kept as INTO.previous; --rollback INTO takes it back. Running programs answer from the bundle that they
    have loaded until they load again.
    """
    import fieldrun

    if rollback == (into is not None) or source is None:
        raise UsageError("give BUNDLE and INTO, or --rollback and INTO alone")
    if rollback:
        report = fieldrun.rollback(source)
    else:
        report = fieldrun.install(source, into or "", engine=engine, provider=provider, threads=threads)
    if as_json:
        put_json(report.to_dict())
        return
    if report.changed:
        proof = (
            "" if report.max_abs_field is None else f", verified with {report.engine} within {report.max_abs_field:.1g}"
        )
        put(f"{report.path}: {report.name} ({report.sha256[:12]}){proof}")
    else:
        put(f"{report.path}: {report.name} ({report.sha256[:12]}) is installed already")
    if report.previous is not None and report.changed:
        put(f"the bundle before is in {report.previous}; to go back: fieldrun install --rollback {report.path}")
