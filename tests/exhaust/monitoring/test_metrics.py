"""The metrics for Prometheus, and the answers to probes."""

import json
import os
import re
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from config import settings
from exhaust.files import links
from exhaust.jobs import transitions, wakeup
from exhaust.models import Delivery, Job, Schedule, Wakeup
from ingest.derive import deriver
from ingest.models import ApiKey
from tests.conftest import bearer, make_channel, make_key
from tests.exhaust.destinations import make_destination
from tests.exhaust.factories import make_answer, make_claimed, make_finished, make_job, send_events
from tools.reference import list_metrics

TOKEN = {"Authorization": "Bearer t0ken"}
MONITORING = settings.BASE_DIR / "docs" / "monitoring"


def scrape(client: Client) -> dict[tuple[str, tuple[str, ...]], float]:
    answer = client.get("/metrics", headers=TOKEN)
    assert answer.status_code == 200
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


@pytest.mark.django_db
def test_dead_deliveries_are_counted(client: Client, settings: Any) -> None:
    # given an export that no destination got, one of long ago, and a callback
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    make_finished(deliver_to="lake")
    old = make_finished(deliver_to="lake").deliveries.get()
    told = make_finished(callback_url="https://a.example/told").deliveries.get()
    Delivery.objects.filter(pk=old.pk).update(ended_at=timezone.now() - timedelta(days=1))
    Delivery.objects.filter(pk=told.pk).update(status="dead", ended_at=timezone.now())

    # when / then
    values = scrape(client)
    dead = {key[1]: value for key, value in values.items() if key[0] == "exhaust_deliveries_dead"}
    assert dead == {("ORG_001", "lake", "files"): 1, ("ORG_001", "", "callback"): 1}


def make_failing_schedule() -> None:
    Schedule.objects.create(
        channel=make_channel("ORG_001"), name="daily", cron="0 6 * * *", dataset="uci",
        next_at=timezone.now(), last_error="There are too many requests.",
    )  # fmt: skip


def test_metrics_are_off_by_default(client: Client) -> None:
    assert client.get("/metrics").status_code == 404


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer other", "Basic t0ken", "t0ken"])
def test_metrics_require_token(authorization: str, client: Client, settings: Any) -> None:
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    answer = client.get("/metrics", headers={"Authorization": authorization})
    assert answer.status_code == 401
    assert b"exhaust_" not in answer.content


@pytest.mark.django_db
def test_job_outcomes_are_counted(client: Client, settings: Any) -> None:
    # given
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    before = scrape(client)

    # when one is made, one failed, one stopped, one taken over, and one waits
    finished = make_finished(b"a,b\n1,2\n")
    transitions.fail(make_claimed(), "no", permanent=True)
    transitions.cancel(make_claimed(), "stop")
    make_claimed()
    Job.objects.filter(status="PROCESSING").update(lease_until="2020-01-01T00:00Z")
    transitions.claim()
    make_job(priority=Job.Priority.NIGHTLY)

    # then
    after = scrape(client)

    def grown(name: str, *labels: str) -> float:
        return after.get((name, labels), 0.0) - before.get((name, labels), 0.0)

    dataset = finished.dataset
    for outcome in ("success", "failed", "cancelled"):
        assert grown("exhaust_jobs_total", dataset, outcome) == 1
    assert grown("exhaust_lease_takeovers_total", dataset, "worker_lost") == 1
    assert grown("exhaust_bytes_out_total", dataset) == 8
    assert grown("exhaust_job_seconds_count", dataset) == 1
    assert grown("exhaust_ready_seconds_count", dataset) == 1
    assert after["exhaust_jobs_unfinished", ("nightly", "SUBMITTED")] == 1
    assert after["exhaust_jobs_unfinished", ("interactive", "PROCESSING")] == 1
    assert after["exhaust_queue_wait_seconds", ()] >= 0


@pytest.mark.usefixtures("probed")
@pytest.mark.django_db
def test_sweeps_servers_and_schedules_are_measured(client: Client, settings: Any) -> None:
    # given a sweep of a minute ago, a schedule that fails, and a broker that is gone
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    settings.CELERY_BROKER_URL = "redis://127.0.0.1:1/0"
    Wakeup.objects.create(kind=wakeup.SWEEP, started_at=timezone.now() - timedelta(seconds=60))
    make_failing_schedule()

    make_key(expires_at=timezone.now() + timedelta(days=13))
    ApiKey.objects.update(last_used_at=timezone.now())

    # when / then
    values = scrape(client)
    assert values["exhaust_keys_ending", ("ORG_001",)] == 1
    assert 60 <= values["exhaust_sweep_age_seconds", ()] < 70
    assert values["exhaust_part_up", ("broker",)] == 0
    assert values["exhaust_part_up", ("storage",)] == 1
    assert values["exhaust_schedules_failing", ("ORG_001",)] == 1


@pytest.mark.django_db
def test_link_uses_are_counted(client: Client, settings: Any) -> None:
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    (file,) = make_finished().files.all()
    link = links.get_or_create(file)
    assert link is not None
    before = scrape(client)
    download = client.get(links.build_url(link).partition(":8000")[2])
    assert (download.status_code, b"".join(download)) == (200, b"a,b\n1,2\n")
    assert client.get("/dataset/v1/download/altered").status_code in (403, 404)
    after = scrape(client)
    name = "exhaust_downloads_total"
    grown = {key[1][0]: after[key] - before.get(key, 0) for key in after if key[0] == name}
    assert grown["200"] == 1
    assert sum(grown.values()) == 2


@pytest.mark.django_db(transaction=True)
def test_ingested_events_are_counted(client: Client, settings: Any) -> None:
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    key = bearer(make_key("ingest"))
    good, bad = {"deviceId": "d1"}, {"deviceId": 5}
    before = scrape(client)
    client.post("/v1/participants", [good, good, bad], content_type="application/json", headers=key)
    after = scrape(client)
    for outcome, count in (("stored", 2), ("rejected", 1)):
        name = ("exhaust_events_total", (outcome, "participants"))
        assert after[name] - before.get(name, 0) == count


@pytest.mark.django_db
@pytest.mark.parametrize("page", ["alerts.yml", "dashboard.json"])
def test_dashboard_and_alerts_metrics_exist(page: str, client: Client, settings: Any) -> None:
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    answer = client.get("/metrics", headers=TOKEN).content.decode()
    families = {
        family.name: family.type
        for family in text_string_to_metric_families(answer)
        if family.name.startswith("exhaust_") and not family.name.endswith("_created")
    }
    existing_metrics = {
        name + suffix
        for name, kind in families.items()
        for suffix in {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(
            kind, ("",)
        )
    }
    text = (MONITORING / page).read_text()
    used_metrics = set(re.findall(r"\bexhaust_\w+", text))
    assert used_metrics
    assert used_metrics <= existing_metrics
    if page.endswith("json"):
        assert len({panel["id"] for panel in json.loads(text)["panels"]}) > 10
        assert {name.removesuffix("_total") for name in families} <= {
            re.sub("_(total|bucket|count|sum)$", "", name) for name in used_metrics
        } | {"exhaust_destination_disabled"}


@pytest.mark.parametrize("page", ["alerts.yml", "dashboard.json"])
def test_dashboard_and_alerts_labels_exist(page: str) -> None:
    labels = {label for metric in list_metrics() for label in metric.labels} | {"le", "severity"}

    text = (MONITORING / page).read_text()
    grouped = {
        name.strip() for group in re.findall(r" by \(([^)]+)\)", text) for name in group.split(",")
    }
    selected = set(re.findall(r"[{,]\s*(\w+)=~?\\?\"", text))

    assert grouped
    assert grouped | selected <= labels


# an alert, a series as /metrics writes it, its values by the minute when well, and when not
ALERTS = [
    ("JobQueueStalled", "exhaust_queue_wait_seconds", "0 119x20", "0 121x20"),
    ("JobFailureRate", "exhaust_jobs_total{dataset='events-exhaust',outcome='failed'}",
     "0x5 1x15", "0x5 1 2 3 4x15"),
    ("WorkersLost", "exhaust_lease_takeovers_total{dataset='events-exhaust',reason='worker_lost'}",
     "0x5 1x15", "0x5 1 2 3 4x15"),
    ("StorageUnreachable", "exhaust_jobs_total{dataset='events-exhaust',outcome='postponed'}",
     "0x5 1x15", "0x15 1 2 3 4 5 6 7"),
    ("StorageUnreachable", "exhaust_part_up{part='storage'}", "1x20", "1x10 0x10"),
    ("SessionDerivationLagging", "exhaust_session_lag_seconds{channel='ORG_001'}",
     "300x20", "301x20"),
    ("DestinationDeliveryStopped",
     "exhaust_destination_disabled{channel='ORG_001',destination='search'}", "0x40", "1x40"),
    ("DeliveriesDead",
     "exhaust_deliveries_dead{channel='ORG_001',destination='lake',kind='files'}", "0x20", "1x20"),
    ("HighRejectionRate", "exhaust_events_total{outcome='rejected',source='desk'}",
     "0x40", "0+9x40"),
    ("OverloadRejections", "exhaust_http_overload_rejections_total", "0+59x20", "0+61x20"),
    ("MetricsAbsent", "exhaust_queue_wait_seconds", "0x20", "0x5 stale"),
    ("BrokerUnavailable", "exhaust_part_up{part='broker'}", "1x20", "0x20"),
    ("SweepStalled", "exhaust_sweep_age_seconds", "60x20", "61x20"),
    ("SchedulesFailing", "exhaust_schedules_failing{channel='ORG_001'}", "0x40", "1x40"),
    ("KeysEnding", "exhaust_keys_ending{channel='ORG_001'}", "0x90", "1x90"),
]  # fmt: skip
PROMTOOL = shutil.which("promtool") or ""


@pytest.mark.django_db
@pytest.mark.skipif(not PROMTOOL, reason="needs Debian's prometheus")
def test_alerts_fire(client: Client, settings: Any, tmp_path: Path) -> None:
    # given the series of a scrape
    settings.EXHAUST_METRICS_TOKEN = "t0ken"
    send_events(make_answer(1))
    deriver.derive_all(5)
    make_failing_schedule()
    make_destination(name="search")
    make_finished(deliver_to="lake")  # no destination has this name: its delivery is dead
    make_key(expires_at=timezone.now() + timedelta(days=13))
    ApiKey.objects.update(last_used_at=timezone.now())
    scraped = client.get("/metrics", headers=TOKEN).content.decode().replace('"', "'")
    names = {line.rpartition(" ")[0] for line in scraped.splitlines()}
    rules = (MONITORING / "alerts.yml").read_text()
    named = re.findall(r"alert: (\w+)", rules)
    assert {alert for alert, *_ in ALERTS} == set(named) - {"CertificateExpiring"}  # of an exporter
    assert {series for _, series, *_ in ALERTS} <= names

    # when each is well, and is not, then Prometheus' own tool finds that its alert fires
    tests = []
    for alert, series, well, ill in ALERTS:
        firing = f"count(ALERTS{{alertname='{alert}',alertstate='firing'}})"
        for values, samples in ((well, []), (ill, [{"labels": "{}", "value": 1}])):
            minutes = next((n for n in (90, 40) if values.endswith(f"x{n}")), 20)
            tests.append(
                {
                    "name": f"{alert} {values}",
                    "interval": "1m",
                    "input_series": [
                        {"series": series, "values": values},
                        *({"series": "exhaust_queue_wait_seconds", "values": "0x40"},)[
                            : alert not in ("JobQueueStalled", "MetricsAbsent")
                        ],
                    ],
                    "promql_expr_test": [
                        {"expr": firing, "eval_time": f"{minutes}m", "exp_samples": samples}
                    ],
                }
            )
    (tmp_path / "tests.json").write_text(
        json.dumps({"rule_files": [str(MONITORING / "alerts.yml")], "tests": tests})
    )
    command = [PROMTOOL, "test", "rules", "tests.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_processes_of_a_machine_count_once(tmp_path: Path) -> None:
    # given a web process, a worker with a port and one without, in one folder
    code = (
        "import sys; sys.argv = sys.argv[1:]\n"
        "from config import settings\n"
        "from prometheus_client import CollectorRegistry, multiprocess\n"
        "from ingest import metrics\n"
        "metrics.count_batch('telemetry', 1, 0, 0)\n"
        "print(flush=True); input()\n"
        "labels = {'outcome': 'stored', 'source': 'telemetry'}\n"
        "multiprocess.MultiProcessCollector(registry := CollectorRegistry())\n"
        "print(registry.get_sample_value('exhaust_events_total', labels) or 0.0)"
    )
    worker = ("/bin/celery", "-A", "config", "worker")
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=settings.BASE_DIR,
            env={
                **os.environ,
                "EXHAUST_METRICS_TOKEN": "t0ken",
                "EXHAUST_METRICS_PORT": port,
                "EXHAUST_DATA_DIR": str(tmp_path),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for arguments, port in ((("uvicorn",), "9100"), (worker, "9100"), (worker, "0"))
    ]

    # when the web's page and the worker's port are scraped
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    web, with_port, _ = [float(child.communicate("\n")[0]) for child in children]

    # then each event is counted once
    assert (web, with_port) == (2.0, 1.0)
