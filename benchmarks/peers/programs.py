"""The programs of the peers, run with the Python of their own environment.

    python -m benchmarks.peers.programs fastapi '{"folder": ..., "thresholds": [...], "port": ..., "processes": 1, ...}'
    python -m benchmarks.peers.programs litserve '{..., "workers": 1, ...}'
    python -m benchmarks.peers.programs least '{..., "processes": 2}'

All run the exported graphs stage by stage, over the images that have not left yet. There is no msmlp in the peers'
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
Floats = NDArray[np.float32]
Answer = dict[str, Any]
GIVEN = "MSMLP_PEER"
"""How uvicorn's worker processes receive the command line."""
_LAST = ["probabilities"]
_OUTPUTS = [*_LAST, "score", "features"]


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
            for path in sorted(folder.glob("stage-?.onnx"))  # int8 graphs have longer names
        ]
        self.stages = len(self._sessions)
        self.size = int(self._sessions[0].get_inputs()[0].shape[1])

    def run(self, stage: int, pixels: Pixels, upstream: Floats | None = None) -> list[Floats]:
        """A stage (0-based) over a batch → probabilities [n, classes]; before the last one score [n], features too.

        Nothing reads the last stage's score and features.
        """
        inputs = {"pixels": pixels} if upstream is None else {"pixels": pixels, "upstream": upstream}
        wanted = _LAST if stage == self.stages - 1 else _OUTPUTS
        outputs: list[Floats] = self._sessions[stage].run(wanted, inputs)
        return outputs

    def classify(self, pixels: Pixels) -> list[Answer]:
        """Images [n, size, size, 3] → class, confidence and exit of each."""
        if len(pixels) == 1:
            return [self.classify_one(pixels)]
        probabilities, *more = self.run(0, pixels)
        exits, rest = np.ones(len(pixels), dtype=int), np.arange(len(pixels))
        for k, threshold in enumerate(self._thresholds, 1):
            score, features = more
            on = score < threshold
            if not on.any():
                break
            rest = rest[on]
            probabilities[rest], *more = self.run(k, pixels[rest], features[on])
            exits[rest] = k + 1
        return _answers(probabilities, exits)

    def classify_one(self, pixels: Pixels) -> Answer:
        """The same for one image [1, size, size, 3], without the work that batches need."""
        upstream = None
        for stage in range(self.stages):
            (probabilities,), *more = self.run(stage, pixels, upstream)
            if not more or more[0][0] >= self._thresholds[stage]:
                break
            upstream = more[1]
        best = int(probabilities.argmax())
        return {"class_id": best, "confidence": float(probabilities[best]), "exit": stage + 1}


def _answers(probabilities: Floats, exits: NDArray[np.int_]) -> list[Answer]:
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
        return graphs.classify_one(decode(data, graphs.size)[None])

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
    elif name == "least":
        from benchmarks.peers.least import serve_least

        serve_least(given)
    else:
        serve_fastapi(given)


if __name__ == "__main__":
    main(*sys.argv[1:])
