"""`pig app`: search an index in the browser."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..visualization.text import printable
from .common import (
    DeviceOption,
    DTypeOption,
    IndexesOption,
    MovedModelOption,
    StorageOption,
    TrustOption,
    one_line_errors,
    parse_storage_options,
    require_modules,
)


def app(
    index: IndexesOption,
    model: MovedModelOption = None,
    storage_option: StorageOption = None,
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
    allow_write: Annotated[
        bool, typer.Option("--allow-write", help="Let the API add, change and delete videos of the index.")
    ] = False,
    video_root: Annotated[
        list[Path] | None, typer.Option(help="Folder from which the API may add videos. May be repeated.")
    ] = None,
    max_searches: Annotated[
        int | None, typer.Option(min=1, help="Searches that run at the same time; by default one per core.")
    ] = None,
    rate_limit: Annotated[
        float | None, typer.Option(min=0.01, help="Searches and writes per second of a client; by default unlimited.")
    ] = None,
    log_requests: Annotated[
        bool, typer.Option("--log-requests", help="Print a line per request, without its query.")
    ] = False,
    log_queries: Annotated[bool, typer.Option("--log-queries", help="Print the queries too.")] = False,
    dtype: DTypeOption = "auto",
    device: DeviceOption = "auto",
    trust_remote_code: TrustOption = False,
) -> None:
    """Search an index in the browser: play the videos, explain results, and find videos like an uploaded one.

    It also serves an HTTP API, which /api/docs describes. With PIG_API_TOKEN in the environment, requests need this
    token; those that write need PIG_API_WRITE_TOKEN, if it is set. PIG_API_ID_KEY is the secret of the ids of videos.
    """
    with one_line_errors():
        require_modules("app", "fastapi", "prometheus_client", "uvicorn")
        from ..app.media import media_folder
        from ..app.server import AppServer, bind, is_loopback, make_server
        from ..app.service import SearchService
        from ..app.settings import read_secrets
        from ..retrieval.search import VideoSearcher
        from ..visualization.text import read_captions

        candidates = read_captions(captions) if captions else ()
        listener = bind(host, port)  # before the model is loaded: a port in use is reported at once
        is_public = not is_loopback(listener)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
        options["storage_options"] = parse_storage_options(storage_option)
        open_searcher = partial(VideoSearcher.from_pretrained, model, index, **options)
        searcher = None
        try:
            searcher = open_searcher()
            for opened in searcher.indexes:
                opened.warm()
        except FileNotFoundError as error:
            if taken := [uri for uri in index if os.path.isfile(uri)]:
                raise ValueError(f"{taken[0]} is a file and not an index: give the path of an index.") from error
            typer.echo(f"warning: {printable(str(error))} The app serves it once it is there.", err=True)
        if missing := [root for root in video_root or () if not root.is_dir()]:
            raise ValueError(f"There is no folder {missing[0]}: give an existing one to --video-root.")
        server = AppServer(
            SearchService(searcher, candidates, open_searcher),
            max_upload_bytes=int(max_upload_mb * 1e6),
            examples=example or (),
            is_public=is_public,
            host_names=allow_host or (),
            allow_write=allow_write,
            video_roots=video_root or (),
            rate_limit=rate_limit,
            log_requests=log_requests,
            log_queries=log_queries,
            media_folder=media_folder(index[0]),
            **read_secrets(),
            **({"max_searches": max_searches} if max_searches else {}),
        )
        if is_public and not server.settings.needs_token:
            warning = "all who can reach this machine can search the index and see its videos: set PIG_API_TOKEN"
            typer.echo(f"warning: {warning}", err=True)
        shown_host = f"[{host}]" if ":" in host else host
        address = f"http://{shown_host}:{listener.getsockname()[1]}"
        # Printed when it serves: an earlier Ctrl-C could be lost while the server starts.
        on_start = partial(typer.echo, f"{address} (stop with Ctrl-C)")
        try:
            make_server(server.asgi, on_start).run(sockets=[listener])
        finally:
            server.close()
