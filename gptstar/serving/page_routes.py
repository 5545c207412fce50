"""GET /: the web page, whose files lie in page/."""

from __future__ import annotations

import hashlib
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, Response

FOLDER = Path(__file__).with_name("page")
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked about each time: an unchanged file is 304 and no bytes
}

router = APIRouter(tags=["page"])


@router.head("/", include_in_schema=False)
@router.get("/", response_class=HTMLResponse)
async def page(request: Request) -> Response:
    """A web page to write with the models and to look into what they choose from."""
    return _file(request, "index.html")


@router.get("/page/{name}", include_in_schema=False)
async def asset(request: Request, name: str) -> Response:
    """What the page is made of."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    if name not in _NAMES:
        raise HTTPException(404, f"there is no {name} here")
    path = FOLDER / name
    data = path.read_bytes()
    tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    headers = {**HEADERS, "ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, headers=headers, media_type=KINDS[path.suffix])


_NAMES = frozenset(path.name for path in FOLDER.iterdir() if path.suffix in KINDS)
