"""`fieldrun verify`: does a bundle still give, on this machine, what its export measured?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import ParityError, StorageError

from .options import bundle_argument, engine_options, examples, json_option
from .output import note, put, put_json, put_table, warn

if TYPE_CHECKING:
    from fieldrun_runtimes.verify import EngineReport

__all__ = ["verify"]


@click.command(
    short_help="Check a bundle's answers on this machine.",
    epilog=examples("fieldrun verify reference --engine all", "fieldrun verify reference --record records"),
)
@bundle_argument
@engine_options
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the outcome and the facts of this machine to DIR/verify-BUNDLE-RECIPE-ENGINE.json, one file for "
    "each engine that ran, with the provider behind the engine where it has one. An older record of the same name is "
    "replaced.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context, bundle: str, engine: str, provider: str | None, threads: int, record: Path | None, as_json: bool
) -> None:
    """Replay the golden texts of a bundle and compare fields and scores with those of the export.

    --engine all replays every engine that is installed and able to run the bundle, and says why others are skipped.
    Ends with exit code 8 when an engine differs by more than the bundle's tolerance; its record is written all the
    same.
    """
    import fieldrun

    if record is not None:
        _make_folder(record)
    report = fieldrun.verify(bundle, engine=engine, provider=provider, threads=threads)
    if record is not None:
        for path in report.write(record, machine=fieldrun.doctor(bundle).machine):
            note(f"wrote {path}")
    if as_json:
        put_json(report.to_dict())
    else:
        put(f"{report.path}: {report.files} files as exported, {report.texts} golden texts")
        put_table([_HEAD, *(_line(entry) for entry in report.engines)])
        for reason in dict.fromkeys(report.skipped.values()):
            names = [name for name, why in report.skipped.items() if why == reason]
            put(f"skipped {', '.join(names)}: {reason}")
    if not report.passed:
        for entry in report.engines:
            if not entry.passed:
                warn(f"error: {_failed(entry)}; copy the bundle again or export it here")
        ctx.exit(ParityError.exit_code)


_HEAD = ("engine", "version", "result", "field gap", "score gap", "limit", "cosine", "labels agree", "buckets")


def _passed(entry: EngineReport) -> str:
    """Return the word for an engine that passed: a deep int8 network is held to what rounding alone may change."""
    return "passed" if entry.typical_tolerance is None else "passed within int8 rounding"


def _failed(entry: EngineReport) -> str:
    """Return a sentence with the numbers of an engine that did not pass."""
    typical = entry.typical_tolerance
    said = [
        f"a field is off by up to {entry.max_abs_field:.2g} and a score by {entry.max_abs_scores:.2g}, the limit is "
        f"{entry.tolerance:.2g}"
    ]
    if typical is not None and not entry.quartile_abs_field <= typical:
        said.append(f"a quarter of the fields by {entry.quartile_abs_field:.2g} and more, the limit is {typical:.2g}")
    if entry.identified < 1:
        said.append(f"{1 - entry.identified:.1%} of the texts pass for another one")
    if not entry.tokens_equal:
        said.append("the token ids are others")
    return f"{entry.engine} does not give its golden values on this machine: {'; '.join(said)}"


def _line(entry: EngineReport) -> tuple[str, ...]:
    """Return the cells of one engine: gaps are the largest, the cosine is the smallest."""
    return (
        entry.engine if entry.provider in (None, "cpu") else f"{entry.engine} on {entry.provider}",
        entry.engine_version,
        _passed(entry) if entry.passed else "differs" if entry.tokens_equal else "other tokens",
        f"{entry.max_abs_field:.1e}",
        f"{entry.max_abs_scores:.1e}",
        f"{entry.tolerance:.0e}",
        f"{entry.min_cosine:.5f}",
        f"{entry.agreement:.1%}",
        str(entry.buckets or "-"),
    )


def _make_folder(folder: Path) -> None:
    """Create the folder of the records before the work, so that one that cannot be written costs no time."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error
