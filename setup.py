"""What pyproject.toml cannot say: the links are checked, and the build writes the description of the gRPC messages."""

from importlib.util import find_spec
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROTOCOL = "msmlp/service/grpc/inference"  # a source distribution has no service/ beside msmlp/


class BuildPy(build_py):
    """`inference.proto` → `inference.binpb` beside it, which service/grpc/messages.py reads."""

    def run(self) -> None:
        """Write it first, as it is package data. A build without protoc (and without isolation) has no gRPC."""
        if find_spec("grpc_tools"):
            from grpc_tools import protoc

            if protoc.main(["protoc", "--proto_path=.", f"--descriptor_set_out={PROTOCOL}.binpb", f"{PROTOCOL}.proto"]):
                raise SystemExit(f"{PROTOCOL}.proto: protoc failed")
        super().run()


for link in ("model", "service", "weights"):
    if not Path("msmlp", link).is_dir():
        raise SystemExit(f"msmlp/{link} is not a link to {link}/: git clone -c core.symlinks=true makes it one")
setup(cmdclass={"build_py": BuildPy})
