"""`/livez` asked again and again by a process of its own, whose own work no test holds up:

    python probe.py URL

Each time on a new connection, until stdin ends; then it prints the seconds of each as JSON, -1 for one without 200.
"""

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

EVERY_SECONDS = 0.01


def ask(host: str, port: int) -> float:
    began = time.monotonic()
    connection = http.client.HTTPConnection(host, port, timeout=60)
    try:
        connection.request("GET", "/livez")
        response = connection.getresponse()
        response.read()
        return time.monotonic() - began if response.status == 200 else -1.0
    except (OSError, http.client.HTTPException):
        return -1.0
    finally:
        connection.close()


def main() -> None:
    url, took = urlsplit(sys.argv[1]), list[float]()
    while not select.select([sys.stdin], [], [], EVERY_SECONDS)[0]:
        took.append(ask(url.hostname or "", url.port or 80))
    sys.stdout.write(json.dumps(took))


if __name__ == "__main__":
    main()
