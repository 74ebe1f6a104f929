"""The least a web service in front of a model does: read the body, decode the images, answer as many bytes.

    python -m msmlp.bench.reference_server SIZE

For `msmlp bench http` alone. The same FastAPI, uvicorn and settings as the product's server, with uvicorn's fastest
parser, and the product's functions for reading a form and for decoding; no engine, no options, no metrics.
`POST /?4000` answers with 4,000 bytes.
"""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response

from msmlp.bench.bodies import HEADER_LENGTH
from msmlp.model.preprocess import MAX_PIXELS
from msmlp.service.decoding import decode_images
from msmlp.service.http.body import read_body
from msmlp.service.http.server import UVICORN, listen


@lru_cache
def _answer(length: int) -> bytes:
    return b'{"results": "' + b"x" * (length - 15) + b'"}'


def reference_app(size: int) -> FastAPI:
    """The application; images are brought to `size`."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pool = ThreadPoolExecutor(max(2, os.cpu_count() or 2))

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/")
    async def answer(request: Request) -> Response:
        if request.headers["content-type"].startswith("multipart/"):
            images, _ = await read_body(request, max_bytes=2**26, max_images=1024)
        else:
            images = [await request.body()]
        if HEADER_LENGTH in request.headers:  # pixels, which are not decoded
            return Response(_answer(int(request.scope["query_string"])), media_type="application/json")
        await decode_images(images, size, MAX_PIXELS, pool)
        return Response(_answer(int(request.scope["query_string"])), media_type="application/json")

    return app


def main(size: str) -> None:
    """Serve on a free port of 127.0.0.1 until SIGTERM."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s")
    with listen("127.0.0.1", 0) as listener:
        logging.info("serving the reference on http://127.0.0.1:%d", listener.getsockname()[1])
        settings = {**UVICORN, "http": "httptools", "access_log": False}
        uvicorn.Server(uvicorn.Config(reference_app(int(size)), **settings)).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
