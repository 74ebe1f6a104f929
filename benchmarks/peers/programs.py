"""The programs of the peers, run with the Python of their own environment.

    python -m benchmarks.peers.programs fastapi '{"folder": ..., "thresholds": [...], "port": ..., "processes": 1, ...}'
    python -m benchmarks.peers.programs litserve '{..., "workers": 1, ...}'

Both run the exported graphs stage by stage, over the images that have not left yet. There is no msmlp in the peers'
environment; ours, which also runs the graphs, has no LitServe: each server's packages are imported where it starts.
"""

import asyncio
import io
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Read when ONNX Runtime is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

Pixels = NDArray[np.uint8]
Answer = dict[str, Any]
GIVEN = "MSMLP_PEER"
"""How uvicorn's worker processes receive the command line."""


def decode(data: bytes, size: int) -> Pixels:
    """An encoded image → uint8 [size, size, 3]."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(image if image.size == (size, size) else image.resize((size, size)))


class Graphs:
    """The stages of a weights folder; images leave at stage k with a score of thresholds[k] or more."""

    def __init__(self, folder: Path, thresholds: list[float], threads: int, spinning: bool = True) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
        self._thresholds = thresholds
        self._sessions = [
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in sorted(folder.glob("stage-*.onnx"))
        ]
        self.size = int(self._sessions[0].get_inputs()[0].shape[1])

    def classify(self, pixels: Pixels) -> list[Answer]:
        """Images [n, size, size, 3] → class, confidence and exit of each."""
        if len(self._sessions) == 1:
            (probabilities,) = self._sessions[0].run(["probabilities"], {"pixels": pixels})
            return _answers(probabilities, np.ones(len(pixels), dtype=int))
        wanted = ["features", "probabilities", "score"]
        features, probabilities, score = self._sessions[0].run(wanted, {"pixels": pixels})
        exits, rest = np.ones(len(pixels), dtype=int), np.arange(len(pixels))
        for k, threshold in enumerate(self._thresholds, 1):
            on = score < threshold
            if not on.any():
                break
            rest, last = rest[on], k == len(self._thresholds)
            inputs = {"pixels": pixels[rest], "upstream": features[on]}
            # Nothing reads the last stage's features.
            *more, answers, score = self._sessions[k].run(wanted[1:] if last else wanted, inputs)
            features = more[0] if more else features
            probabilities[rest], exits[rest] = answers, k + 1
        return _answers(probabilities, exits)


def _answers(probabilities: NDArray[np.float32], exits: NDArray[np.int_]) -> list[Answer]:
    classes, confidences = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
    return [
        {"class_id": class_id, "confidence": confidence, "exit": exit}
        for class_id, confidence, exit in zip(classes, confidences, exits.tolist(), strict=True)
    ]


def fastapi_app() -> Any:
    """Plain FastAPI in one process: each request is decoded and run alone, on a thread of a small pool."""
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

    given = json.loads(os.environ[GIVEN])
    graphs = Graphs(Path(given["folder"]), given["thresholds"], given["threads"], given["spinning"])
    pool = ThreadPoolExecutor(given["pool"])
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def work(data: bytes) -> Answer:
        return graphs.classify(decode(data, graphs.size)[None])[0]

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/predict")
    async def predict(request: Request) -> JSONResponse:
        data = await request.body()
        return JSONResponse(await asyncio.get_running_loop().run_in_executor(pool, work, data))

    return app


def serve_fastapi(given: dict[str, Any]) -> None:
    """With uvicorn, which uses uvloop and httptools where they are installed."""
    import uvicorn

    os.environ[GIVEN] = json.dumps(given)
    uvicorn.run(
        "benchmarks.peers.programs:fastapi_app",
        factory=True,
        host="127.0.0.1",
        port=given["port"],
        workers=given["processes"],
        log_level="warning",
        access_log=False,
    )


def main(name: str, text: str) -> None:
    """Serve until SIGTERM."""
    given = json.loads(text)
    print(f"serving {name} on http://127.0.0.1:{given['port']}", flush=True)
    if name == "litserve":
        from benchmarks.peers.litserve_peer import serve_litserve

        serve_litserve(given)
    else:
        serve_fastapi(given)


if __name__ == "__main__":
    main(*sys.argv[1:])
