"""The table of the load test: what each switch of the bundle cost, and how many answers were wrong or lost."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, conditions

__all__ = ["BLOCKS"]

_COLUMNS = (
    Column("The service learns of the new bundle by", "how"),
    Column("first answer from it, s", "first_answer_s", "{:.2f}"),
    Column("every client has one, s", "every_client_s", "{:.2f}"),
    Column("slowest request around the switch, ms", "slowest_ms", "{:.0f}"),
)


def _serve(record: Record) -> Sequence[Part]:
    request = record["request"]
    return [
        Table(_COLUMNS, record["switches"]),
        f"{record['clients']} clients on a Unix socket, {record['seconds']:.0f} s without a pause between requests: "
        f"{record['requests']:,} requests, {record['wrong']} wrong and {record['lost']} lost answers. "
        f"{record['requests_per_s']:,} requests and {record['texts_per_s']:,} texts a second; a request took "
        f"{request['p50']['value_us'] / 1000:.1f} ms (median) and {request['p99']['value_us'] / 1000:.0f} ms (p99). "
        f"The service had {record['memory']['start']['resident_mib']:.0f} MiB at the start and "
        f"{record['memory']['end']['resident_mib']:.0f} MiB at the end.",
        conditions(record),
    ]


BLOCKS: dict[str, Block] = {"serve": block(_serve, "serve")}
