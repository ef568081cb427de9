"""Serving the chat page, to this machine only unless told otherwise."""

from __future__ import annotations

import errno
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from colossal_llama.errors import UserError

if TYPE_CHECKING:
    import gradio as gr

FIRST_PORT, PORTS_TRIED = 7860, 100

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:"
)
"""Lets a browser load nothing from elsewhere: neither what Gradio links to, nor an image that a model names."""

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


def open_port(host: str, port: int | None) -> socket.socket:
    """A socket that listens, so that a port once found cannot be lost again.

    Args:
        host: name or address to listen on.
        port: 0 for any free one; None for the first free one from :data:`FIRST_PORT`.

    Raises:
        UserError: the port is taken, or this machine has no such address.
    """
    candidates = range(FIRST_PORT, FIRST_PORT + PORTS_TRIED) if port is None else [port]
    for candidate in candidates:
        try:
            return _listen(host, candidate)
        except UnicodeError as error:  # of the codec of host names
            raise UserError(f"--host {host}: no host's name; give a name or an address") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f"--host {host} --port {candidate}: cannot listen there ({error.strerror})") from error
    if port is None:
        raise UserError(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS_TRIED - 1}; choose one with --port")
    raise UserError(f"--port {port}: in use on {host} by another program; choose another, or leave --port away")


def _listen(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def url_of(host: str, listener: socket.socket) -> str:
    """The address to open in a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def is_local(host: str) -> bool:
    """Whether only programs on this machine can reach ``host``."""
    return host in ("localhost", "::1") or host.startswith("127.")


def serve(blocks: gr.Blocks, listener: socket.socket, host: str) -> None:
    """Serve a page until Ctrl-C."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(web_application(blocks, host), log_level="critical", timeout_graceful_shutdown=1)
    )
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def web_application(blocks: gr.Blocks, host: str) -> Any:
    """The ASGI application of a page.

    Browsers are told to load nothing from other machines. A page for this machine only answers to no other name, so
    that no web site can reach it through a name of its own (DNS rebinding).
    """
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from colossal_llama.chat.web import GRADIO_MAJOR, page_look

    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if is_local(host):
        names = [host, "localhost", "127.0.0.1"]
        if ":" in host:
            # Starlette cuts [::1]:7860 at the first colon and leaves a bracket, which begins no web site's name.
            names += [f"[{host}]", "["]
        application.add_middleware(TrustedHostMiddleware, allowed_hosts=names)
    application.add_middleware(OwnSourcesOnly)
    look = page_look() | {"footer_links": []} if GRADIO_MAJOR >= 6 else {"show_api": False}
    return gr.mount_gradio_app(application, blocks, path="/", ssr_mode=False, pwa=False, mcp_server=False, **look)


class OwnSourcesOnly:
    """ASGI middleware that adds :data:`CONTENT_SECURITY_POLICY` to every response."""

    def __init__(self, app: Callable[[_Message, _Receive, _Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Pass a request on."""

        async def send_with_policy(message: _Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self._app(scope, receive, send_with_policy)
