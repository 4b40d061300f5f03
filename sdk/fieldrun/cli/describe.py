"""`fieldrun info` and `fieldrun tasks`: what a bundle is, without loading it into an engine."""

from __future__ import annotations

import click

from .options import bundle_argument, examples, json_option
from .output import one_line, put, put_json, put_table, terminal_width

__all__ = ["info", "tasks"]


@click.command(short_help="Show what a bundle is.", epilog=examples("fieldrun info reference"))
@bundle_argument(default="reference")
@json_option
def info(bundle: str, as_json: bool) -> None:
    """Show what a bundle holds, after checking the sha256 of every file.

    With --json: path, name, bytes, parameters, recipe, buckets, tasks, hashes, licence, settings,
    provenance, fieldrun.
    """
    from fieldrun.formats.bundle import Bundle

    opened = Bundle.load(bundle)
    manifest = opened.manifest
    buckets = [{"batch": bucket.batch, "length": bucket.length} for bucket in manifest.buckets]
    recipe = str(manifest.recipe.get("name", "unnamed"))
    if as_json:
        value = {"path": str(opened.path), "name": manifest.name, "bytes": opened.total_bytes()}
        value |= {"parameters": manifest.network.parameters, "recipe": recipe, "buckets": buckets}
        value |= {"tasks": {task.name: {"kind": task.kind, "labels": len(task.labels)} for task in manifest.tasks}}
        value |= {"hashes": {name: entry.sha256 for name, entry in manifest.files.items()}}
        value |= {"licence": manifest.licence, "settings": dict(manifest.recipe)}
        value |= {"provenance": dict(manifest.provenance), "fieldrun": manifest.fieldrun}
        put_json(value)
        return
    put_table(
        [
            ("name", manifest.name),
            ("path", opened.path),
            ("size", f"{opened.total_bytes() / 1e6:.1f} MB in {len(manifest.files) + 1} files"),
            ("parameters", f"{manifest.network.parameters / 1e6:.2f} M"),
            ("recipe", recipe),
            ("buckets", ", ".join(f"{bucket['batch']}x{bucket['length']}" for bucket in buckets) + " (texts x tokens)"),
            ("tasks", ", ".join(task.name for task in manifest.tasks)),
            ("licence", manifest.licence),
            ("files", "every sha256 is what the manifest says"),
        ]
    )


@click.command(short_help="List a bundle's tasks and labels.", epilog=examples("fieldrun tasks reference"))
@bundle_argument(default="reference")
@json_option
def tasks(bundle: str, as_json: bool) -> None:
    """List a bundle's tasks with their labels.

    With --json: tasks, a list of objects with name, kind ('single' or 'pair') and labels.
    """
    from fieldrun.formats.bundle import Bundle

    listed = Bundle.load(bundle).manifest.tasks
    if as_json:
        put_json({"tasks": [{"name": t.name, "kind": t.kind, "labels": list(t.labels)} for t in listed]})
        return
    name_width = max((len(task.name) for task in listed), default=0)
    for task in listed:
        start = f"{task.name:<{name_width}}  {task.kind:<6}  {len(task.labels):>3}  "
        width = terminal_width()
        put(start + one_line(", ".join(task.labels), None if width is None else max(20, width - len(start))))
