"""`fieldrun info` and `fieldrun tasks`: what a bundle is, and what it answers."""

from __future__ import annotations

import click

from .options import bundle_argument, examples, json_option
from .output import one_line, put, put_json, put_table, terminal_width

__all__ = ["info", "tasks"]


@click.command(short_help="Show what a bundle is.", epilog=examples("fieldrun info", "fieldrun info my-bundle --json"))
@bundle_argument
@json_option
def info(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds, after checking the sha256 of every file.

    With --json: path, name, bytes, parameters, recipe, buckets, tasks, hashes, licence, settings, provenance, fieldrun.
    """
    import fieldrun

    about = fieldrun.Bundle.load(bundle).about()
    if as_json:
        put_json(about)
        return
    buckets = ", ".join(f"{bucket['batch']}x{bucket['length']}" for bucket in about["buckets"])
    put_table(
        [
            ("name", about["name"]),
            ("path", about["path"]),
            ("size", f"{about['bytes'] / 1e6:.1f} MB in {len(about['hashes']) + 1} files"),
            ("parameters", f"{about['parameters'] / 1e6:.2f} M"),
            ("recipe", about["recipe"]),
            ("buckets", f"{buckets} (texts x tokens)"),
            ("tasks", ", ".join(about["tasks"])),
            ("licence", about["licence"]),
            ("files", "the sha256 of every file matches the manifest"),
        ]
    )


@click.command(short_help="List a bundle's tasks and labels.", epilog=examples("fieldrun tasks"))
@bundle_argument
@json_option
def tasks(bundle: str, as_json: bool) -> None:
    """List a bundle's tasks with their labels.

    With --json: tasks, a list of objects with name, kind ('single' or 'pair') and labels.
    """
    import fieldrun

    listed = fieldrun.Bundle.load(bundle).manifest.tasks
    if as_json:
        put_json({"tasks": [{"name": t.name, "kind": t.kind, "labels": list(t.labels)} for t in listed]})
        return
    name_width = max((len(task.name) for task in listed), default=0)
    for task in listed:
        start = f"{task.name:<{name_width}}  {task.kind:<6}  {len(task.labels):>3}  "
        width = terminal_width()
        put(start + one_line(", ".join(task.labels), None if width is None else max(20, width - len(start))))
