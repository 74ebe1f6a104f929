"""LitServe: decoding in `decode_request`, its own batching around ONNX Runtime.

python -m benchmarks.peers.litserve_peer '{"folder": …, "thresholds": […], "port": …, "workers": 1, …}'
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
from fastapi import Body

from benchmarks.peers.graphs import Answer, Graphs, Pixels, decode


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """The graphs as LitServe wants them."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__(max_batch_size=given["batch"], batch_timeout=given["timeout"])
        self._given = given

    def setup(self, device: str) -> None:
        """In each worker."""
        given = self._given
        self._graphs = Graphs(Path(given["folder"]), given["thresholds"], given["threads"], given["spinning"])

    # The body as it is: a form or base64 in JSON would cost LitServe more.
    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        """One image."""
        return decode(request, self._graphs.size)

    def batch(self, inputs: list[Pixels]) -> Pixels:
        """Those that came together."""
        return np.stack(inputs)

    def predict(self, x: Pixels) -> list[Answer]:
        """All of them."""
        return self._graphs.classify(x)

    def unbatch(self, output: list[Answer]) -> list[Answer]:
        """One each."""
        return output

    def encode_response(self, output: Answer):  # type: ignore[no-untyped-def]  # LitServe reads the annotation
        """As JSON."""
        return output


def main(given: str) -> None:
    """Serve until SIGTERM."""
    options = json.loads(given)
    server = litserve.LitServer(
        Classifier(options),
        accelerator="cpu",
        workers_per_device=options["workers"],
        healthcheck_path="/readyz",
        fast_queue=options["fast_queue"],
    )
    print(f"serving litserve on http://127.0.0.1:{options['port']}", flush=True)
    server.run(host="127.0.0.1", port=options["port"], log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
