"""`fieldrun cache`: list or delete the engines that are kept on this machine."""

from __future__ import annotations

import click

from .options import cache_option, examples, json_option
from .output import put, put_json, put_table

__all__ = ["cache"]


@click.group(short_help="List or delete compiled engines.", epilog=examples("fieldrun cache list --json"))
def cache() -> None:
    """List or delete the engines that 'fieldrun build' keeps."""


@cache.command("list", epilog=examples("fieldrun cache list --json"))
@cache_option
@json_option
def list_(cache_root: str | None, as_json: bool) -> None:
    """List every engine with what it was built for."""
    import fieldrun

    store = fieldrun.EngineCache(cache_root)
    entries = store.entries()
    if as_json:
        put_json({"root": str(store.root), "engines": [entry.to_dict() for entry in entries]})
        return
    put_table(
        [
            (
                entry.path.relative_to(store.root),
                entry.key.bucket,
                f"{entry.bytes / 1e6:.1f} MB",
                f"{entry.key.target} {entry.key.tensorrt}",
                entry.key.device or "no GPU",
            )
            for entry in entries
        ]
    )
    put(f"{store.root}: {len(entries)} engines, {sum(entry.bytes for entry in entries) / 1e6:.1f} MB")


@cache.command(epilog=examples("fieldrun cache clear"))
@cache_option
@json_option
def clear(cache_root: str | None, as_json: bool) -> None:
    """Delete every engine; 'fieldrun build' makes them again."""
    import fieldrun

    store = fieldrun.EngineCache(cache_root)
    engines, size = store.clear()
    if as_json:
        put_json({"root": str(store.root), "engines": engines, "bytes": size})
    else:
        put(f"{store.root}: deleted {engines} engines, {size / 1e6:.1f} MB")
