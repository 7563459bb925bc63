"""A real S3-compatible server for tests: OpenStack Swift with its s3api middleware.

moto checks neither signatures nor the expiry of presigned links; Swift enforces both.
Proxy, account, container and object servers share one eventlet process on 127.0.0.1, with
all their state in one folder. Needs the `s3local` extra.

    python -m tests.s3server --port 0 --dir DIR
"""

import argparse
import os
import select
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"
REGION = "us-east-1"

HOST = "127.0.0.1"
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0

# 10,000 parts as on S3 (Swift: 1,000). Deletes must not be left to the expirer daemon, which
# does not run here. There is one node, so shutting it out after errors would only hide them.
PROXY_CONF = f"""\
[pipeline:main]
pipeline = catch_errors s3api tempauth slo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
error_suppression_interval = 0
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:s3api]
use = egg:swift#s3api
location = {REGION}
max_upload_part_num = 10000
[filter:tempauth]
use = egg:swift#tempauth
user_{ACCESS_KEY.replace(":", "_")} = {SECRET_KEY} .admin
[filter:slo]
use = egg:swift#slo
max_manifest_segments = 10000
allow_async_delete = false
"""


def _has_xattr(folder: Path) -> bool:
    probe = folder / "xattr-probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.swift.probe", b"1")
    except OSError:
        return False
    finally:
        probe.unlink()
    return True


def serve(port: int, folder: Path, host: str = HOST) -> None:
    """Serve from `folder` until SIGTERM or SIGINT. Only the proxy listens on another host."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: stopping.append(received))

    folder = folder.resolve()
    devices = folder / "devices"
    (devices / "d1").mkdir(parents=True, exist_ok=True)
    (folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = s3server\n")
    (folder / "proxy.conf").write_text(PROXY_CONF)

    # Imported late: the tests that use running() must not load eventlet, and Swift reads
    # swift.conf while it is imported.
    warnings.simplefilter("ignore")
    import logging
    from array import array

    import eventlet
    from swift.common import utils

    utils.monkey_patch()
    utils.set_swift_dir(str(folder))

    from eventlet import wsgi
    from eventlet.green.http.client import HTTPConnection
    from swift.account.server import AccountController
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.ring import RingData
    from swift.common.utils import logs
    from swift.common.wsgi import loadapp
    from swift.container.server import ContainerController
    from swift.obj import mem_server, server

    # Swift logs to the machine's syslog only; stderr is where a failed test looks.
    logs.ThreadSafeSysLogHandler = lambda **_: logging.StreamHandler()

    objects = server
    if not _has_xattr(devices):
        sys.stderr.write(f"no user xattr in {folder}: objects are kept in memory\n")
        objects = mem_server

    # The time-outs suit a busy machine, and an upload returns once the listing has it.
    conf = {
        "swift_dir": str(folder),
        "devices": str(devices),
        "mount_check": "false",
        "fallocate_reserve": "0",
        "log_level": "WARNING",
        "conn_timeout": "10",
        "node_timeout": "60",
        "container_update_timeout": "60",
    }

    def start(app: object, listen_port: int = 0, listen_host: str = HOST) -> int:
        sock = eventlet.listen((listen_host, listen_port), reuse_port=False)
        # SDKs look for "ETag"; eventlet would make it "Etag".
        options = {"protocol": SwiftHttpProtocol, "capitalize_response_headers": False}
        eventlet.spawn(wsgi.server, sock, app, utils.NullLogger(), **options)
        return int(sock.getsockname()[1])

    for name, controller in (
        ("account", AccountController),
        ("container", ContainerController),
        ("object", objects.ObjectController),
    ):
        device = {"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "d1", "ip": HOST}
        device["port"] = start(controller(conf))
        # One replica, one partition.
        RingData([array("H", [0])], [device], 32).save(str(folder / f"{name}.ring.gz"))

    port = start(loadapp(str(folder / "proxy.conf"), global_conf=conf), port, host)
    probe = HTTPConnection(host, port, timeout=START_TIMEOUT)
    probe.request("GET", "/")
    probe.getresponse().read()
    probe.close()
    sys.stdout.write(f"READY http://{host}:{port}\n")
    sys.stdout.flush()
    while not stopping:
        eventlet.sleep(0.1)


@contextmanager
def running(
    dir: Path, port: int = 0, host: str = HOST, prefix: Sequence[str] = ()
) -> Iterator[str]:
    """Run the server as a child process on that or a free port and yield its endpoint URL.

    `prefix` is a command that starts it, in another network namespace for example.
    """
    dir.mkdir(parents=True, exist_ok=True)
    command = [*prefix, sys.executable, "-m", "tests.s3server", "--port", str(port)]
    command += ["--host", host]
    command += ["--dir", str(dir.resolve())]
    root = Path(__file__).resolve().parents[1]
    log = dir / "server.log"  # a file: a pipe without a reader could fill up
    with log.open("wb") as errors:
        child = subprocess.Popen(
            command, cwd=root, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    assert child.stdout is not None
    try:
        ready, _, _ = select.select([child.stdout], [], [], START_TIMEOUT)
        word, _, url = (child.stdout.readline() if ready else "").strip().partition(" ")
        if word != "READY":
            raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')}")
        yield url
    finally:
        child.terminate()
        try:
            child.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        child.stdout.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="S3-compatible server for tests")
    parser.add_argument("--port", type=int, default=0, help="0: a free port")
    parser.add_argument("--host", default=HOST, help="where it listens")
    parser.add_argument("--dir", type=Path, required=True, help="folder for all state")
    args = parser.parse_args()
    serve(args.port, args.dir, args.host)
