"""Serve the app of a Space: search the index beside this file. `pig push space` wrote the folder of this file."""

import json
import os
import tempfile
from pathlib import Path

from modeling_pig import VideoSearcher
from modeling_pig.app.server import AppServer, bind, make_server
from modeling_pig.app.service import SearchService
from modeling_pig.app.settings import read_secrets
from modeling_pig.stores.transfer import import_index


os.chdir(Path(__file__).parent)  # paths of videos and model in the index are relative to this folder
settings = json.loads(Path("space.json").read_text(encoding="utf-8"))
with tempfile.TemporaryDirectory() as folder:
    uri = os.path.join(folder, "index.lance")
    import_index("index.parquet", uri)
    service = SearchService(VideoSearcher.from_pretrained(settings["model"], uri), settings["captions"])
    server = AppServer(
        service,
        max_upload_bytes=settings["max_upload_bytes"],
        is_public=True,
        host_names=[space_host] if (space_host := os.environ.get("SPACE_HOST")) else [],
        frame_ancestors="'self' https://huggingface.co",
        **read_secrets(),
    )
    listener = bind(os.environ.get("HOST", "0.0.0.0"), int(os.environ.get("PORT", "7860")))
    print(f"listening on port {listener.getsockname()[1]}", flush=True)
    try:
        make_server(server.asgi).run(sockets=[listener])
    finally:
        server.close()
