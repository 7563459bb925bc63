"""A Ray cluster makes the same parts, whoever of it dies."""

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exhaust.jobs import attempt, engine_parts
from exhaust.models import File, Job
from ingest.models import Channel
from tests import ray_cluster
from tests.exhaust.archive.conftest import archive
from tests.exhaust.archive.test_read import CONFIG, small_groups
from tests.exhaust.engines.test_parts import make_by_rows, read_files, send_awkward
from tests.exhaust.factories import make_claimed, stored_paths
from tests.ray_cluster import Cluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("archive"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
]
__all__ = ["archive", "small_groups"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="ray-") as folder,
        ray_cluster.running(Path(folder), nodes=1) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def engine(
    cluster: Cluster, settings: Any, monkeypatch: pytest.MonkeyPatch, small_groups: None
) -> None:
    settings.EXHAUST_ENGINE = cluster.url
    monkeypatch.setattr(engine_parts, "MIN_ROWS", 1)
    monkeypatch.setattr(engine_parts, "PART_ROWS", 10)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, cluster.environment[name])


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part takes more than half a second."""
    from exhaust.engines import ray
    from tests.exhaust.engines import slow

    monkeypatch.setattr(ray, "try_part", slow.try_slowly)


def is_working(cluster: Cluster) -> bool:
    """Whether any task was alive within the last second."""
    paths = [*(cluster.folder / "alive").iterdir()]
    return any(time.time() - path.stat().st_mtime < 1 for path in paths)


@pytest.mark.parametrize("name", ["csv", "jsonl.gz"])
def test_cluster_makes_the_bytes_of_rows(name: str, settings: Any) -> None:
    send_awkward()
    job = make_claimed(output_format=name, config=CONFIG)

    assert attempt.run(job)

    *parts, manifest = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, name)
    assert {file.key for file, _ in (*parts, manifest)} == set(
        stored_paths(Path(settings.FILES_DIR))
    )


def test_hashed_devices_stay_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection to the cluster is not encrypted, so it gets no key."""
    from exhaust.engines import ray

    send_awkward()
    Channel.objects.update(hash_device_ids=True)
    job = make_claimed(config=CONFIG)
    monkeypatch.setattr(ray.RayCluster, "submit", None)

    assert attempt.run(job)

    *parts, _ = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, "csv")


@pytest.mark.usefixtures("slow")
def test_parts_of_a_killed_node_are_made_again(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    send_awkward()
    job = make_claimed(config=CONFIG)
    taken: list[int] = []
    original = engine_parts.PartsMaker.take

    def kill_after_two(maker: Any, part: Any, result: Any) -> None:
        original(maker, part, result)
        taken.append(part.number)
        if len(taken) == 2:
            ray_cluster.kill_node(cluster.processes[-1])

    monkeypatch.setattr(engine_parts.PartsMaker, "take", kill_after_two)

    # then
    try:
        assert attempt.run(job)
    finally:
        cluster.join()
    *parts, _ = read_files(job)
    assert [body for _, body in parts] == make_by_rows(job, "csv")
    assert len(set(taken)) == len(taken) > 2


@pytest.mark.usefixtures("slow")
def test_lost_lease_ends_the_tasks(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    send_awkward()
    job = make_claimed(config=CONFIG)
    ended_at: list[float] = []

    def lose() -> None:
        Job.objects.update(attempt=9)
        ended_at.append(time.monotonic())

    original = engine_parts.PartsMaker.take

    def lose_after_one(maker: Any, part: Any, result: Any) -> None:
        original(maker, part, result)
        if not ended_at:
            lose()

    monkeypatch.setattr(engine_parts.PartsMaker, "take", lose_after_one)
    monkeypatch.setattr(engine_parts, "PART_ROWS", 4)

    assert not attempt.run(job)
    assert time.monotonic() - ended_at[0] < 6
    time.sleep(1.5)
    assert not is_working(cluster)
    assert not File.objects.exists()
    assert stored_paths(Path(settings.FILES_DIR)) == []


def test_killed_worker_takes_its_tasks_along(cluster: Cluster) -> None:
    code = f"""
import time, pickle
from exhaust.engines import ray
from tests.exhaust.engines import slow
ray.try_part = slow.try_slowly
cluster = ray.RayCluster(None, {cluster.url!r})
for number in range(200):
    cluster.submit(number, None)
print("submitted", flush=True)
time.sleep(100)
"""
    environment = cluster.environment
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"submitted\n"
        deadline = time.monotonic() + 20
        while not (cluster.folder / "alive").exists() or not is_working(cluster):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        worker.send_signal(signal.SIGKILL)
    time.sleep(5)
    assert not is_working(cluster)


def test_cluster_that_does_not_answer_is_named(settings: Any) -> None:
    send_awkward()
    settings.EXHAUST_ENGINE = f"ray://127.0.0.1:{ray_cluster.find_port()}"
    job = make_claimed(config=CONFIG)

    assert not attempt.run(job)
    job.refresh_from_db()
    assert job.status == Job.Status.SUBMITTED
    assert job.status_message.startswith("The cluster for large files does not answer;")


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_cluster_asks_for_the_token(mode: str, cluster: Cluster) -> None:
    wrong = cluster.folder / "wrong"
    wrong.write_text("another")
    code = f"from exhaust.engines.ray import RayCluster; RayCluster(None, {cluster.url!r})"
    variables = {"RAY_AUTH_TOKEN_PATH": str(wrong), "RAY_AUTH_MODE": mode}
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env=cluster.environment | variables,
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 1
    assert "does not answer; an operator looks whether it runs, and has the token" in answer.stderr


def test_cluster_without_a_core_ends_the_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    from exhaust.engines import ray

    send_awkward()
    monkeypatch.setattr(ray, "NO_CORES_SECONDS", -1.0)
    monkeypatch.setattr("ray.cluster_resources", dict)
    job = make_claimed(config=CONFIG)

    assert not attempt.run(job)
    job.refresh_from_db()
    assert job.status_message.startswith("The cluster for large files has no node;")


def test_worker_of_celery_connects(cluster: Cluster) -> None:
    """Celery puts a logger in place of its processes' output."""
    code = f"""
import logging, sys
from celery.utils.log import LoggingProxy
from exhaust.engines.ray import RayCluster
output = sys.stdout
sys.stdout = sys.stderr = LoggingProxy(logging.getLogger())
with RayCluster(None, {cluster.url!r}) as engine:
    output.write(str(engine.core_count))
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], env=cluster.environment, capture_output=True, text=True
    )
    assert answer.stdout == "2"


def test_other_version_is_named(cluster: Cluster) -> None:
    code = (
        "import ray; ray.__version__ = '2.59.0'; from exhaust.engines.ray import RayCluster;"
        f" RayCluster(None, {cluster.url!r})"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env=cluster.environment, capture_output=True, text=True
    )
    assert answer.returncode == 1
    assert "another version of Ray or Python than this worker" in answer.stderr
    assert "installs Ray 2.59.0 on both" in answer.stderr
