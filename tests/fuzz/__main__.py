"""Looks for bytes that a target does not refuse as it should:

    pip install atheris
    nice python -m tests.fuzz decoder --seconds 600

Begins with the corpus of the repository, keeps what it finds in build/fuzz/TARGET, and ends at the first fault with the
bytes in build/fuzz/crash-...: mend it, and add them to tests/fuzz/corpus/TARGET.
"""

import argparse
import sys
from pathlib import Path

import atheris

MODULES = [
    "msmlp.model",
    "msmlp.service.oip",
    "msmlp.service.grpc",
    "msmlp.service.http.json_body",
    "msmlp.service.options",
]
with atheris.instrument_imports(include=MODULES):
    from tests.fuzz.targets import CORPUS, TARGETS

SLOW_SECONDS, MOST_MIB = 5, 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    given = parser.parse_args()
    found = Path("build") / "fuzz" / given.target
    found.mkdir(parents=True, exist_ok=True)
    limits = [
        f"-max_total_time={given.seconds}",
        f"-timeout={SLOW_SECONDS}",
        f"-rss_limit_mb={MOST_MIB}",
        "-max_len=4096",
    ]
    folders = [str(found), str(CORPUS / given.target)]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found.parent}/", *folders], TARGETS[given.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
