"""The table of what the emulated ARM processors answered: numerics only."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, code

__all__ = ["BLOCKS"]

_COLUMNS = (
    Column("Emulated processor", "processor"),
    Column("bundle", "bundle"),
    Column("engine", "engine", code),
    Column("golden texts", "texts"),
    Column("token ids", lambda row: "equal" if row["tokens_equal"] else "differ"),
    Column("labels equal", lambda row: f"{row['labels_equal']} of {row['labels']}"),
    Column("largest difference of a field", "max_abs_field", "{:.1e}"),
    Column("of a probability", "max_abs_scores", "{:.1e}"),
)


def _arm(record: Record) -> Sequence[Part]:
    rows = []
    for name, processor in record["processors"].items():
        bundles = {f"`{record['bundle']['name']}`": processor["engines"]}
        bundles |= {f"recipe `{recipe}`": engines for recipe, engines in processor.get("recipes", {}).items()}
        about = f"{name} ({processor['boards']})"
        rows += [
            {**result, "processor": about, "bundle": bundle, "engine": engine}
            for bundle, engines in bundles.items()
            for engine, result in engines.items()
        ]
    guest, native = record["guest"], record["native"]
    packages = ", ".join(f"{name} {version}" for name, version in guest["packages"].items())
    tolerance = rows[0]["tolerance"]
    return [
        Table(_COLUMNS, rows),
        f"({record['conditions']['date']}; {record['emulator']}, Python {guest['python']} of {guest['machine']}, "
        f"{packages}; the native engine is {native['path']}, by {native['compiler']}. Every text alone and in every "
        f"bucket, against the bundle's golden values; at most {tolerance:.0e} passes. Emulated: this says nothing of "
        "speed, memory or power.)",
    ]


BLOCKS: dict[str, Block] = {"arm-emulation": block(_arm, "arm-emulation")}
