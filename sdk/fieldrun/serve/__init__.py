"""A bundle as an HTTP service.

    fieldrun serve reference                          # the command: uvicorn, signals, sockets
    application = fieldrun.serve.app("reference")     # the ASGI application alone, for any server

The application is plain ASGI and needs nothing beyond the base installation; the command needs uvicorn
(`pip install 'fieldrun[serve]'`). Answers are those of `FieldModel`, bit for bit. When the bundle's path leads to
another bundle, the new one is verified and loaded beside the old one, and takes over between two requests.
"""

from __future__ import annotations

from .application import Application, app
from .questions import Limits
from .server import run

__all__ = ["Application", "Limits", "app", "run"]
