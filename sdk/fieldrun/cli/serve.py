"""`fieldrun serve`: a bundle as an HTTP service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import bundle_argument, examples, runtime_options, unknown_option

__all__ = ["serve"]


@click.command(
    short_help="Answer HTTP requests with a bundle.",
    epilog=examples(
        "fieldrun serve reference --port 8000",
        "fieldrun serve /var/lib/fieldrun/current --uds /run/fieldrun/http.sock",
        """curl --json '{"text": "a film to remember", "task": "sst2"}' http://127.0.0.1:8000/predict""",
    ),
)
@bundle_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="The port; 0 takes a free one."
)
@click.option("--uds", type=click.Path(path_type=Path), metavar="PATH", help="Listen on this Unix socket instead.")
@click.option("--fd", type=click.IntRange(min=0), help="Use this open socket instead; systemd passes number 3.")
@click.option("--max-body", type=click.IntRange(min=1), default=1_000_000, show_default=True, help="Bytes of a body.")
@click.option("--max-texts", type=click.IntRange(min=1), default=1024, show_default=True, help="Texts of a request.")
@click.option(
    "--max-characters", type=click.IntRange(min=1), default=20_000, show_default=True, help="Characters of a text."
)
@click.option(
    "--max-requests",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    help="Requests at once; the next one is refused.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds from the first byte of a request to its answer.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    help="Requests that the model answers at once.  [default: one per CPU, at least 2]",
)
@click.option(
    "--watch",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    help="Seconds between two looks for another bundle; 0: look only on SIGHUP and POST /reload.",
)
@click.option("--access-log", is_flag=True, help="Log one line per request.")
@unknown_option
@runtime_options
def serve(
    bundle: str,
    host: str,
    port: int,
    uds: Path | None,
    fd: int | None,
    max_body: int,
    max_texts: int,
    max_characters: int,
    max_requests: int,
    timeout: float,
    concurrency: int | None,
    watch: float,
    access_log: bool,
    unknown: str,
    runtime: dict[str, Any],
) -> None:
    """Answer HTTP requests with BUNDLE, a folder or a link to one.

    POST /predict, /scores and /field take JSON; GET /docs is a page that describes them, /openapi.json the same for
    programs, /health says which bundle answers, and /metrics is for Prometheus.

    When BUNDLE leads to another bundle, that one is verified and loaded while the old one answers, and takes over
    between two requests. SIGHUP and POST /reload look at once. SIGTERM answers the requests that have begun, then ends.
    """
    from fieldrun import serve as service

    limits = service.Limits(
        body_bytes=max_body, texts=max_texts, characters=max_characters, seconds=timeout, requests=max_requests
    )
    application = service.app(
        bundle,
        **runtime,
        unknown=unknown,
        limits=limits,
        concurrency=concurrency,
        watch_s=watch,
        access_log=access_log,
    )
    service.run(application, host=host, port=port, uds=uds, fd=fd)
