"""The LitServe peer: decoding in `decode_request`, and LitServe's own batching around the graphs.

A separate module, because LitServe pickles the class for its workers, and our environment has no LitServe to import.
"""

from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body

from benchmarks.peers.programs import Answer, Graphs, Pixels, decode


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The graphs behind LitServe's interface."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(max_batch_size=given["batch"], batch_timeout=given["timeout"])
        self._given = given

    def setup(self, device: str) -> None:
        given = self._given
        self._graphs = Graphs(Path(given["folder"]), given["thresholds"], given["threads"], given["spinning"])

    # The body as it is: a form or base64 in JSON would cost LitServe more.
    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        return decode(request, self._graphs.size)

    def batch(self, inputs: list[Pixels]) -> Pixels:
        """Images [n, size, size, 3]."""
        return np.stack(inputs)

    def predict(self, x: Pixels) -> list[Answer]:
        return self._graphs.classify(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        return output

    def encode_response(self, output: Answer):  # type: ignore[no-untyped-def]  # LitServe reads the annotation
        """FastAPI writes it as JSON."""
        return output


def serve_litserve(given: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    server = litserve.LitServer(
        Classifier(given),
        accelerator="cpu",
        workers_per_device=given["workers"],
        healthcheck_path="/readyz",
        fast_queue=given["fast_queue"],
    )
    server.run(host="127.0.0.1", port=given["port"], log_level="warning", generate_client_file=False)
