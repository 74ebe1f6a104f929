"""What pyproject.toml cannot say: the description of the gRPC messages is written when the package is built."""

from importlib.util import find_spec
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PROTOCOL = "msmlp/service/grpc/inference"  # in a source distribution there is no service/ but the package's own


class BuildPy(build_py):
    """`inference.proto` → `inference.binpb` beside it, which service/grpc/messages.py reads."""

    def run(self) -> None:
        """Write it first, as it is package data. A build without protoc (and without isolation) has no gRPC."""
        if not Path("msmlp/model/__init__.py").exists():
            raise SystemExit(
                "msmlp/model is not a link to model/: clone with symbolic links (git config core.symlinks true)"
            )
        if find_spec("grpc_tools"):
            from grpc_tools import protoc

            if protoc.main(["protoc", "--proto_path=.", f"--descriptor_set_out={PROTOCOL}.binpb", f"{PROTOCOL}.proto"]):
                raise SystemExit(f"{PROTOCOL}.proto: protoc failed")
        super().run()


setup(cmdclass={"build_py": BuildPy})
