"""`pig app`: search an index in the browser."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from .common import (
    DeviceOption,
    DTypeOption,
    IndexesOption,
    MovedModelOption,
    TrustOption,
    one_line_errors,
    require_modules,
)


def app(
    index: IndexesOption,
    model: MovedModelOption = None,
    captions: Annotated[
        Path | None, typer.Option(help="Text file, one caption per line: the page shows captions that fit a video.")
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option(help="Example query that the page offers. May be repeated.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. By default, only this machine can connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any free port.")] = 7860,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further host name under which the app answers. May be repeated.")
    ] = None,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="Largest video to upload, in MB.")] = 200,
    dtype: DTypeOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Search an index in the browser: play the videos, explain results, and find videos like an uploaded one."""
    with one_line_errors():
        require_modules("app", "fastapi", "prometheus_client", "uvicorn")
        from ..app.server import AppServer, bind, is_loopback, make_server
        from ..app.service import SearchService
        from ..retrieval.search import VideoSearcher
        from ..visualization.text import read_captions

        candidates = read_captions(captions) if captions else ()
        listener = bind(host, port)  # before the model is loaded: a port in use is reported at once
        is_public = not is_loopback(listener)
        searcher = VideoSearcher.from_pretrained(
            model, index, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
        server = AppServer(
            SearchService(searcher, candidates),
            max_upload_bytes=int(max_upload_mb * 1e6),
            examples=example or (),
            is_public=is_public,
            host_names=allow_host or (),
        )
        if is_public:
            typer.echo("warning: all who can reach this machine can search the index and see its videos", err=True)
        shown_host = f"[{host}]" if ":" in host else host
        address = f"http://{shown_host}:{listener.getsockname()[1]}"
        # Printed when it serves: an earlier Ctrl-C could be lost while the server starts.
        on_start = partial(typer.echo, f"{address} (stop with Ctrl-C)")
        make_server(server.asgi, on_start).run(sockets=[listener])
