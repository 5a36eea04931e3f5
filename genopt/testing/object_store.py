"""An S3 server on this machine, for tests."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from genopt.errors import StageError

_SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


@contextlib.contextmanager
def object_store(bucket: str = "genopt-test") -> Iterator[str]:
    """The URI of an empty bucket; this process's environment, and so its children's, has credentials for it while the block runs.

    Args:
        bucket: Its name.
    """
    from pyarrow import fs

    with subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        line = next(iter(server.stdout or ()), "")
        if not line:
            raise StageError("The S3 server for tests did not start; install genopt with its test extra.")
        address = f"127.0.0.1:{int(line)}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}.items():
                patch.setenv(name, value)
            fs.S3FileSystem(endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True).create_dir(bucket)
            yield f"s3://{bucket}/store?endpoint_override={address}&scheme=http&region=us-east-1"
        server.terminate()
