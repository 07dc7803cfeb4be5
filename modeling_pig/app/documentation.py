"""Serve the documentation of the API: Swagger UI from the package `fastapi-offline`, which asks no other site."""

from importlib.util import find_spec
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse, Response

from ..extras import pip_install


HERE = Path(__file__).parent
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# The page has no script of its own: `Content-Security-Policy` forbids scripts inside of pages.
PAGE = """<!doctype html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>API of modeling-pig</title>
    <link rel="icon" href="data:,">
    <link rel="stylesheet" href="docs/swagger-ui.css">
    <script defer src="docs/swagger-ui-bundle.js"></script>
    <script defer src="docs/start.js"></script>
  </head>
  <body><main id="api"></main></body>
</html>
"""
START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  validatorUrl: null,
  tryItOutEnabled: true,
});
"""


def add_documentation(app: FastAPI) -> None:
    """Add the page `/api/docs` to an application, with its files."""
    package = find_spec("fastapi_offline")
    static = Path(package.origin).parent / "static" if package and package.origin else None

    def page(request: Request) -> Response:
        if static is None:
            return PlainTextResponse(f"This page needs fastapi-offline: {pip_install('app')}", 501)
        return HTMLResponse(PAGE)

    def start(request: Request) -> Response:
        return Response(START, media_type="text/javascript")

    def file(request: Request) -> Response:
        name = request.path_params["name"]
        if static is None or name not in FILES:
            return PlainTextResponse("Not found", 404)
        return FileResponse(static / name, media_type=FILES[name], headers={"Cache-Control": "max-age=86400"})

    app.add_route("/api/docs", page)
    app.add_route("/api/docs/start.js", start)
    app.add_route("/api/docs/{name}", file)


__all__ = ["add_documentation"]
