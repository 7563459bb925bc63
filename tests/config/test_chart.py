"""The chart, rendered by Helm: what the compose file runs, as Kubernetes takes it."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from exhaust.cli import __version__
from tests.config.test_compose import OURS, SERVICES, SETTINGS, command
from tests.service import ROOT

pytest.importorskip("helm_python", reason="needs the extra kubernetes: pip install '.[kubernetes]'")
kubernetes = pytest.importorskip("kubernetes_validate")
CHART = ROOT / "config" / "chart"
WORKERS = ("worker", "nightly", "deliver", "maintain")
SECRET_WORDS = ("KEY", "SECRET", "PEPPER", "PASSWORD", "TOKEN", "DATABASE_URL", "BROKER_URL")
ALL_ON = {
    "serviceAccountName": "exporter",
    "image": {"repository": "registry.example/exhaust", "pullSecrets": [{"name": "registry"}]},
    "autoscaling": {"enabled": True},
    "ingress": {"enabled": True, "className": "public", "tlsSecret": "certificate"},
    "proxy": {"settings": {"OUTER_PROXIES": "10.0.0.0/8", "ANONYMOUS_CALLS": 200}},
    "networkPolicy": {"clients": [{"namespaceSelector": {}}], "monitoring": [{"podSelector": {}}]},
}


def run_chart(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    # in a process of its own: it loads another language's threads
    return subprocess.run(
        [sys.executable, "-m", "tools.chart", "--values", json.dumps(values)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def render(values: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    done = run_chart(values)
    assert done.returncode == 0, done.stderr
    return done.stdout, [each for each in yaml.safe_load_all(done.stdout) if each]


TEXT, PLAIN = render({})
ALL = render(ALL_ON)[1]


def find(kind: str, component: str, objects: list[dict[str, Any]] = PLAIN) -> dict[str, Any]:
    (found,) = (
        each
        for each in objects
        if (each["kind"], each["metadata"]["name"]) == (kind, f"exhaust-{component}")
    )
    return found


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns each pod's template by its component."""
    templates = [each["spec"]["template"] for each in objects if "template" in each.get("spec", {})]
    return {each["metadata"]["labels"]["app.kubernetes.io/component"]: each for each in templates}


def container(component: str) -> dict[str, Any]:
    (only,) = pods(PLAIN)[component]["spec"]["containers"]
    return dict(only)


def variables(component: str) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in container(component)["env"]}


@pytest.mark.parametrize("version", ["1.27", "1.37"])
@pytest.mark.parametrize("objects", [PLAIN, ALL], ids=["plain", "all"])
def test_each_object_fits_its_schema(objects: list[dict[str, Any]], version: str):
    of_keda = [each for each in objects if each["apiVersion"].startswith("keda.sh/")]
    assert len(of_keda) == (2 if objects is ALL else 0)
    for each in objects:
        if each not in of_keda:
            kubernetes.validate(each, version, strict=True)


def test_plain_manifests_are_those_of_the_chart():
    assert (ROOT / "config" / "kubernetes.yaml").read_text() == TEXT.rstrip() + "\n", (
        "python -m tools.chart writes it anew"
    )


def test_version_is_the_services():
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)
    assert container("web")["image"] == f"exhaust:{__version__}"


def test_processes_are_the_composed_ones():
    assert set(pods(PLAIN)) == (OURS.keys() - {"bucket"}) | {"proxy"}
    for name in (*WORKERS, "beat"):
        assert container(name)["command"] == command(name)
    for name in ("collector", "web"):
        assert "command" not in container(name)  # the image's own, as composed
        assert "command" not in SERVICES[name]
    job = pods(PLAIN)["migrate"]["spec"]
    assert job["containers"][0]["command"] == command("migrate")
    assert job["initContainers"][0]["command"] == command("bucket")
    proxy = container("proxy")
    assert proxy["command"] == command("proxy")
    assert proxy["image"] == SERVICES["proxy"]["image"]
    files = find("ConfigMap", "proxy")["data"]
    assert files == {"haproxy.cfg": (ROOT / "config" / "chart" / "haproxy.cfg").read_text()}


@pytest.mark.parametrize("name", sorted(pods(PLAIN).keys() - {"migrate"}))
def test_limits_are_the_composed_ones(name: str):
    composed, pod = SERVICES[name], pods(PLAIN)[name]["spec"]
    memory = container(name)["resources"]["limits"]["memory"]
    assert memory.lower().removesuffix("i") == composed["mem_limit"]
    if "stop_grace_period" in composed:
        patience = int(composed["stop_grace_period"].removesuffix("s"))
        assert pod["terminationGracePeriodSeconds"] >= patience
    if name in WORKERS:
        assert composed["stop_signal"] == "SIGQUIT"
        (*_, line) = container(name)["lifecycle"]["preStop"]["exec"]["command"]
        assert line.startswith("kill -QUIT 1;")
        own = {key: OURS[name]["environment"][key] for key in OURS[name]["environment"].keys()
               - OURS["beat"]["environment"].keys()}  # fmt: skip
        assert variables(name).items() >= own.items()


def test_pods_hold_few_rights():
    for name, template in pods(ALL).items():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False
        # a Service's variable, as EXHAUST_PROXY_PORT, would stop the start as a misspelt setting
        assert pod["enableServiceLinks"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == (99 if name == "proxy" else 10001)
        for each in pod["containers"] + pod.get("initContainers", []):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert each["resources"]["requests"]
            assert each["resources"]["limits"]["memory"]


def test_variables_are_settings_and_no_secrets():
    for name in pods(PLAIN).keys() - {"proxy"}:
        assert container(name)["envFrom"] == [{"secretRef": {"name": "exhaust"}}]
        for variable, value in variables(name).items():
            assert f'"{variable}"' in SETTINGS, variable
            assert not value or not any(word in variable for word in SECRET_WORDS), variable
    (url,) = (each for each in container("migrate")["env"] if each["name"] == "DATABASE_URL")
    assert url["valueFrom"]["secretKeyRef"] == {"name": "exhaust-owner", "key": "DATABASE_URL"}


def test_each_process_is_probed_and_disrupted_one_at_a_time():
    for name in pods(PLAIN).keys() - {"beat", "migrate"}:
        assert "livenessProbe" in container(name)
        assert find("PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1
    for name in ("collector", "web"):
        assert container(name)["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container(name)["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_selectors_find_their_own_pods():
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(ALL).items()}
    for each in ALL:
        spec = each.get("spec", {})
        selector = spec.get("podSelector") or spec.get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        found = {name for name, own in labels.items() if wanted.items() <= own.items()}
        if wanted and each["metadata"]["name"] == "exhaust":  # the policy of all pods
            assert found == set(labels)
        elif wanted:
            assert found == {each["metadata"]["name"].removeprefix("exhaust-")}


def test_only_the_proxy_is_open():
    by_name = {each["metadata"]["name"]: each["spec"] for each in PLAIN
               if each["kind"] == "NetworkPolicy"}  # fmt: skip
    assert "ingress" not in by_name["exhaust"]
    for name in ("exhaust-collector", "exhaust-web"):
        (rule,) = by_name[name]["ingress"]
        (peer,) = rule["from"]
        assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "proxy"
    assert by_name["exhaust-proxy"]["ingress"] == [{"ports": [{"port": "http"}]}]
    assert set(by_name) == {"exhaust", "exhaust-collector", "exhaust-web", "exhaust-proxy"}


def test_keda_adds_workers_by_the_age_of_the_queue():
    scaled = find("ScaledObject", "worker", ALL)["spec"]
    assert scaled["scaleTargetRef"] == {"name": "exhaust-worker"}
    assert "replicas" not in find("Deployment", "worker", ALL)["spec"]
    assert find("Deployment", "worker")["spec"]["replicas"] == 1
    (trigger,) = scaled["triggers"]
    assert trigger["metadata"]["url"] == "http://exhaust-web.exhaust:8000/readyz"
    assert trigger["metadata"]["valueLocation"] == "queue_wait_seconds"
    health = (ROOT / "exhaust" / "monitoring" / "health.py").read_text()
    assert 'state["queue_wait_seconds"]' in health


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"wrokers": {}}, "wrokers"),
        ({"settings": {"s3-bucket": "x"}}, "s3-bucket"),
        ({"workers": {"worker": {"queues": "interactiv"}}}, "queues"),
    ],
)
def test_wrong_value_is_named(values: dict[str, Any], word: str):
    done = run_chart(values)
    assert done.returncode == 1
    assert word in done.stderr


def test_every_queue_has_workers():
    queues = {part for name in WORKERS for part in container(name)["command"][-1].split(",")}
    pattern = json.loads((CHART / "values.schema.json").read_text())["properties"]["workers"]
    named = re.findall(
        r"[a-z]+", pattern["additionalProperties"]["properties"]["queues"]["pattern"]
    )
    assert queues == set(named) == set(WORKERS) - {"worker"} | {"interactive"}
