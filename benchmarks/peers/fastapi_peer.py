"""Plain FastAPI: a request is decoded and run on a thread of a small pool, alone.

    python -m benchmarks.peers.fastapi_peer '{"folder": …, "thresholds": […], "port": …, "processes": 1, …}'

uvicorn takes uvloop and httptools by itself where they are.
"""

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from benchmarks.peers.graphs import Answer, Graphs, decode

GIVEN = "MSMLP_PEER"
"""How uvicorn's worker processes learn the command line."""


def app() -> FastAPI:
    """One process's application."""
    given = json.loads(os.environ[GIVEN])
    graphs = Graphs(Path(given["folder"]), given["thresholds"], given["threads"], given["spinning"])
    pool = ThreadPoolExecutor(given["pool"])
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def work(data: bytes) -> Answer:
        return graphs.classify(decode(data, graphs.size)[None])[0]

    @made.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @made.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        data = await request.body()
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(pool, work, data))

    return made


def main(given: str) -> None:
    """Serve until SIGTERM."""
    os.environ[GIVEN] = given
    options = json.loads(given)
    print(f"serving fastapi on http://127.0.0.1:{options['port']}", flush=True)
    uvicorn.run(
        "benchmarks.peers.fastapi_peer:app",
        factory=True,
        host="127.0.0.1",
        port=options["port"],
        workers=options["processes"],
        log_level="warning",
        access_log=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
