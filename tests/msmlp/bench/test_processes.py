"""Servers as processes: their children end with them."""

import os
from pathlib import Path

from msmlp.bench.processes import family, server_process
from tests.servers import wait_until

SERVER = """
import subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

server = HTTPServer(("127.0.0.1", 0), Ready)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(f"serving it on http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
"""


def test_children_that_a_server_leaves_behind_are_ended_too() -> None:
    said: list[str] = []
    with server_process("test", ["-c", SERVER], said.append) as server:
        assert server.process is not None
        _parent, child = family(server.process)
        os.kill(child, 0)
    assert said[-1] == "stopped test"
    # Its parent is gone: if no other process reaps it, it stays as a zombie.
    wait_until(lambda: not (stat := Path(f"/proc/{child}/stat")).exists() or ") Z " in stat.read_text())
