"""`pig app`: search an index in the browser."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .common import one_line_errors


def app(
    index: Annotated[list[str], typer.Option(help="An index that `pig index` made; several are searched as one.")],
    model: Annotated[str | None, typer.Option(help="The model that made the index, if it has moved.")] = None,
    captions: Annotated[Path | None, typer.Option(help="Sentences, one a line, to choose those that fit.")] = None,
    example: Annotated[
        list[str] | None, typer.Option(help="A sentence that the page offers; may be repeated.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; by default this machine alone can ask.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 7860,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A further name that the app answers to; may be repeated.")
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="The largest video that can be uploaded.")] = 200,
) -> None:
    """Search an index in the browser: clips that play, why they were found, and videos like one of your own."""
    with one_line_errors():
        if not (find_spec("starlette") and find_spec("uvicorn")):
            raise ImportError('The app needs Starlette and uvicorn: pip install "modeling-pig[app]"')
        from ..app.server import AppServer, bind, is_loopback, make_server
        from ..app.service import SearchService
        from ..retrieval.search import VideoSearcher
        from ..visualization.text import read_captions

        sentences = read_captions(captions) if captions else ()
        listener = bind(host, port)  # before the model is loaded: a taken port is told at once
        is_public = not is_loopback(listener)
        server = AppServer(
            SearchService(VideoSearcher.from_pretrained(model, index), sentences),
            max_upload_bytes=int(max_upload_mb * 1e6),
            examples=example or (),
            is_public=is_public,
            host_names=allow_host or (),
        )
        if is_public:
            typer.echo("warning: whoever can reach this machine can search the index and see its videos", err=True)
        shown = f"[{host}]" if ":" in host else host
        typer.echo(f"http://{shown}:{listener.getsockname()[1]} (Ctrl-C ends it)")
        make_server(server.asgi).run(sockets=[listener])
