# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""Serving the page."""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.middleware import Middleware

from .answering import MAX_MEGABYTES, ModelSlot
from .examples import make_examples
from .page import CSS, JS, THEME, build_page


_REMEMBERED = 8
# The page needs nothing from elsewhere, and with this the browser would refuse it. Gradio evaluates templates.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self' data: blob:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'"
)


@contextmanager
def running_page(
    model: ModelSlot,
    host: str = "127.0.0.1",
    port: int | None = None,
    open_browser: bool = False,
    keep_seconds: int = 1800,
) -> Iterator[str]:
    """Serves the page until the block ends, and gives its address.

    Uploads lie in a temporary folder: each is deleted after a while, and all of them when the block ends.

    Args:
        model: that answers; the block may load it.
        port: None takes the first free one from 7860 on.
        keep_seconds: how long uploads are kept.

    Raises:
        OSError: if the port is taken.
    """
    temporary = functools.partial(tempfile.TemporaryDirectory, ignore_cleanup_errors=True)
    # Examples lie elsewhere than uploads, for what lies there is deleted after a while.
    with (
        temporary(prefix="oneref-demo-") as folder,
        temporary(prefix="oneref-demo-examples-") as examples,
        _uploads_to(folder),
    ):
        page = build_page(model, make_examples(Path(examples), photograph=not model.shipped), keep_seconds)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                inbrowser=open_browser,
                quiet=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
                # So many visitors' last answers Gradio remembers, for links to them, which this page does not have.
                state_session_capacity=_REMEMBERED,
                max_file_size=MAX_MEGABYTES * 2**20,
                allowed_paths=[examples],
                app_kwargs={"middleware": [Middleware(_PolicyHeader)], "docs_url": None, "redoc_url": None},
                theme=THEME,
                css_paths=CSS,
                js=JS,
            )
            yield page.local_url
        finally:
            page.close(verbose=False)


class _PolicyHeader:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", _POLICY.encode())]
                headers.append((b"referrer-policy", b"no-referrer"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_policy)


@contextmanager
def _uploads_to(folder: str) -> Iterator[None]:
    """Has Gradio keep its files in the folder."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
