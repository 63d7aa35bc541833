# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""`oneref demo`: a web page that finds phrases in pictures."""

import argparse
import importlib.util
import signal
import socket
import threading
from contextlib import ExitStack, suppress


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Adds `oneref demo` to the command line."""
    from ..cli import add_model_options

    parser = subparsers.add_parser(
        "demo",
        help="a web page to try a model",
        description="Serves a web page: drop a picture, type phrases, see where they point. Pictures stay on this "
        "computer and are deleted after a while, at the latest when the page is stopped.",
        epilog="example: oneref demo --model DIR, then open the address it prints; Ctrl+C stops it",
    )
    add_model_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve at; 0.0.0.0 lets others in (default: this computer only)"
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument(
        "--keep", type=float, default=30, metavar="MINUTES", help="how long uploads are kept (default: 30)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.set_defaults(run=run)
    return parser


def run(options: argparse.Namespace):
    """Serves the page until it is interrupted.

    Raises:
        CommandError: if Gradio is missing, the model cannot be loaded, or the page cannot be served.
    """
    from .. import demo  # noqa: F401  first of all, because it tells other libraries to report nothing
    from ..cli import CommandError, check_model_source, default_model, load_finder, quiet, refusing

    if importlib.util.find_spec("gradio") is None:
        raise CommandError("The page needs Gradio: pip install 'oneref-hf[demo]'.")
    if not 0 < options.keep < float("inf"):
        raise CommandError(f"--keep is a number of minutes above 0, not {options.keep:g}.", exit_code=2)
    model = options.model or default_model()
    check_model_source(model)
    with quiet(options.verbose), ExitStack() as stack:
        from ..demo.answering import ModelSlot
        from ..demo.server import running_page

        shipped = options.model is None
        slot = ModelSlot("the small one that ships with oneref-hf" if shipped else model, shipped)
        page = running_page(slot, options.host, options.port, options.open, round(60 * options.keep) or 1)
        with refusing(OSError, prefix="The page cannot be served: "):
            _require_address(options.host, options.port)
            address = stack.enter_context(page)
        print(f"oneref: the page is at {address} and the model is loading (Ctrl+C stops it)", flush=True)
        # Whoever ends the process otherwise than with Ctrl+C wants the uploads deleted as well.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        slot.load(lambda: load_finder(model, options.device, options.dtype, options.trust_remote_code))
        print("oneref: the model is ready", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _require_address(host: str, port: int | None) -> None:
    """Gradio tries for minutes to serve at an address that is none.

    Raises:
        OSError: if nothing can be served there.
    """
    if port is not None and not 0 < port < 2**16:
        raise OSError(f"port {port}: ports go from 1 to 65535.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server itself does
            probe.bind(address)
    except OSError as error:
        where = host if port is None else f"{host}, port {port}"
        raise OSError(f"{where}: {error}; choose another --host or --port.") from error
