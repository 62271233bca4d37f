"""/docs: Swagger UI from an installed package, so that it works offline, and without inline script."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, PlainTextResponse, Response
from pydantic.json_schema import models_json_schema

from app.problems import Problem
from core.errors import NotFound

# The package is wanted for its files alone: it is never imported.
ASSETS = "fastapi_offline"
FILES = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
START = """SwaggerUIBundle({url: "/openapi.json", dom_id: "#docs", deepLinking: true, tryItOutEnabled: true,
  persistAuthorization: false, presets: [SwaggerUIBundle.presets.apis]});
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>MPO service: API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="docs"></div>
<script src="/docs/swagger-ui-bundle.js"></script><script src="/docs/start.js"></script></body></html>
"""
# Swagger UI sets style attributes and draws its icons from data: URLs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


def install(app: FastAPI) -> None:
    """Add the page and its files, outside the OpenAPI document; and the problems' schemas within it."""
    app.openapi = _with_problems(app)  # type: ignore[method-assign]
    app.add_api_route("/docs", _page, methods=["GET"], include_in_schema=False)
    app.add_api_route("/docs/{name}", _file, methods=["GET"], include_in_schema=False)


def _with_problems(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """The framework documents models of JSON answers alone, and a problem has a media type of its own."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = made()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        if "Problem" not in schemas:
            _, definitions = models_json_schema(
                [(Problem, "serialization")], ref_template="#/components/schemas/{model}"
            )
            schemas.update(definitions["$defs"])
        return document

    return openapi


async def _page() -> Response:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


async def _file(name: str) -> Response:
    if name == "start.js":
        return PlainTextResponse(START, media_type="text/javascript")
    folder = _folder()
    if name not in FILES or folder is None:
        raise NotFound(f"There is no file {name!r}" if folder else f"Install {ASSETS} for the documentation")
    return FileResponse(folder / name, media_type=FILES[name], headers={"Cache-Control": "max-age=86400"})


def _folder() -> Path | None:
    spec = find_spec(ASSETS)
    places = spec.submodule_search_locations if spec else None
    return Path(next(iter(places))) / "static" if places else None
