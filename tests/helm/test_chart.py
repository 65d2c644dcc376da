"""The chart renders what it should, with both Helms, and what it renders is what the services understand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm.charts import CHART, EXAMPLES, ROOT, SECRETS, example, helm, lab_chart, pods, render, the, tool
from quintet_common.models_yml import ModelSpec, RouterSpec, UpstreamSpec, load_config, parse_config

ALL_EXAMPLES = sorted(file.stem for file in EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("name", ["cpu-only", "single-gpu", "eight-gpus"])
def test_an_example_is_valid_for_old_and_new_clusters(name: str) -> None:
    """And Helm 3 and 4 render the same, and no name points at nothing."""
    output = lab_chart("-f", str(EXAMPLES / f"{name}.yaml"), "-f", str(SECRETS))
    assert output.count("rendered and valid") == 2, output


def test_what_examples_leave_off_is_valid_too(tmp_path: Path) -> None:
    values = {
        "workload": {"autoscaling": {"type": "hpa"}, "cache": {"type": "hostPath", "hostPath": "/weights"}},
        "router": {"replicas": 2, "autoscaling": {"enabled": True}, "upstreams": {"existingSecret": "quintet-keys"}},
        "download": {"enabled": True},
        "networkPolicy": {"routerFrom": [{"podSelector": {}}], "egress": {"internet": False, "extra": [{}]}},
        "ingress": {"enabled": True},
        "upstreams": [{"url": "https://api.example.com/v1", "prefix": "cloud/"}],
        "serviceAccount": {"create": False},
    }
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    lab_chart("-f", str(file), "-f", str(SECRETS), versions="1.37.0")


def test_several_nodes_are_one_group_of_vllm(tmp_path: Path) -> None:
    """The lab has no schema of LeaderWorkerSet, so its pods are checked as pods."""
    objects = example("vllm-multi-node")
    assert objects == render("-f", str(EXAMPLES / "vllm-multi-node.yaml"), program="helm3")
    group = the(objects, "LeaderWorkerSet", "qwen3-235b")["spec"]["leaderWorkerTemplate"]
    assert (group["size"], group["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    leader, worker = (group[f"{role}Template"]["spec"]["containers"][0] for role in ("leader", "worker"))
    shared = {"--tensor-parallel-size=8", "--pipeline-parallel-size=2", "--nnodes=2", "--node-rank=$(LWS_WORKER_INDEX)"}
    assert shared <= set(leader["args"]) & set(worker["args"])
    assert "--headless" in worker["args"]
    assert "--port=8000" in leader["args"]
    assert worker["resources"]["limits"] == {"nvidia.com/gpu": 8}
    service = the(objects, "Service", "qwen3-235b")["spec"]["selector"]
    labels = [group[f"{role}Template"]["metadata"]["labels"] for role in ("leader", "worker")]
    assert [service.items() <= each.items() for each in labels] == [True, False]
    file = tmp_path / "pods.yaml"
    made = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        for name, spec in pods(objects).items()
    ]
    file.write_text(yaml.safe_dump_all(made))
    command = [tool("kubernetes-validate"), "--strict", "--quiet", "-k", "1.37.0", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ALL_EXAMPLES)
def test_pods_are_restricted_and_have_time_to_end(name: str) -> None:
    found = pods(example(name))
    assert len(found) > 3
    for spec in found.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
        (container,) = spec["containers"]
        allowed = container["securityContext"]
        assert (allowed["allowPrivilegeEscalation"], allowed["readOnlyRootFilesystem"]) == (False, True)
        assert allowed["capabilities"] == {"drop": ["ALL"]}
        times = [
            float(each.partition("=")[2]) for each in container.get("args", []) if "drain-" in each or "grace" in each
        ]
        if times:
            assert spec["terminationGracePeriodSeconds"] > sum(times)


def test_the_router_has_time_to_end() -> None:
    objects = example("eight-gpus")
    config = yaml.safe_load(the(objects, "ConfigMap", "router")["data"]["models.yml"])["router"]
    spec = the(objects, "Deployment", "router")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] > config["drain_delay"] + config["grace"]


@pytest.mark.parametrize("name", ALL_EXAMPLES)
def test_services_understand_their_files(name: str) -> None:
    objects = example(name)
    maps = [each for each in objects if each["kind"] == "ConfigMap" and "models.yml" in each["data"]]
    configs = {
        each["metadata"]["name"]: parse_config(each["data"]["models.yml"], Path("/etc/quintet/models.yml"))
        for each in maps
    }
    router = configs.pop("q-quintet-router")
    served = [model.id for config in configs.values() for model in config.models]
    assert sorted(served) == sorted(model.id for model in router.models)
    services = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Service"}
    for upstream in router.upstreams:
        host, _, port = upstream.http_url.removeprefix("http://").partition(":")
        assert upstream.dns
        assert services[host]["clusterIP"] == "None"
        assert int(port) == services[host]["ports"][0]["port"]
    for spec in pods(objects).values():
        if spec["containers"][0]["command"][:3] == ["python", "-P", "-m"]:
            assert importlib.util.find_spec(spec["containers"][0]["command"][3]), spec


def test_the_options_of_the_commands_exist() -> None:
    """Of one service, as all take the same, and of the router."""
    found = pods(example("eight-gpus"))
    for name in ("tts", "router"):
        (container,) = found[f"q-quintet-{name}"]["containers"]
        command = [sys.executable, *container["command"][1:], "--help"]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        options = [each.partition("=")[0] for each in container["args"] if each.startswith("--")]
        assert all(option in told for option in options), name


def test_models_yml_as_a_file_is_the_same_as_values() -> None:
    by_file = render("--set-file", f"modelsFile={ROOT / 'models.yml'}")
    config = parse_config(the(by_file, "ConfigMap", "router")["data"]["models.yml"], ROOT / "models.yml")
    assert config.models == load_config(ROOT / "models.yml").models
    assert by_file == render(), "the chart's own models are those of models.yml"


def test_large_numbers_stay_whole() -> None:
    objects = render(
        "--set-json", 'models=[{"id":"m","kind":"chat","path":"a/b","context":1048576,"max_waiting":2000000}]'
    )
    (read,) = parse_config(the(objects, "ConfigMap", "chat")["data"]["models.yml"], Path("models.yml")).models
    assert (read.context, read.max_waiting) == (1048576, 2000000)


def test_a_group_takes_its_models_from_their_kind() -> None:
    objects = example("eight-gpus")
    config = yaml.safe_load(the(objects, "ConfigMap", "chat")["data"]["models.yml"])
    assert [model["id"] for model in config["models"]] == ["qwen2-7b-instruct"]
    large = the(objects, "Deployment", "large")["spec"]
    assert large["replicas"] == 1
    assert large["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    tts = the(objects, "Deployment", "tts")["spec"]["template"]["spec"]["containers"][0]
    assert tts["resources"]["limits"] == {"nvidia.com/mig-1g.10gb": 1}


def test_scaling_to_zero_makes_the_router_wait() -> None:
    objects = example("eight-gpus")
    scaled = the(objects, "ScaledObject", "vision")["spec"]
    assert scaled["minReplicaCount"] == 0
    assert "replicas" not in the(objects, "Deployment", "vision")["spec"]
    query = scaled["triggers"][0]["metadata"]["query"]
    assert "quintet_router_waiting" in query
    assert "model=~`kolors`" in query
    config = yaml.safe_load(the(objects, "ConfigMap", "router")["data"]["models.yml"])
    assert config["router"]["load_wait"] == 1800
    (router,) = pods(objects)["q-quintet-router"]["containers"]
    assert router["readinessProbe"]["httpGet"]["path"] == "/health", "with all asleep it has nobody to send requests to"
    (router,) = pods(example("single-gpu"))["q-quintet-router"]["containers"]
    assert router["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_network_policies_let_pods_reach_what_values_name() -> None:
    hub = render("--set", "hub.endpoint=http://mirror.hub.svc:8080", "--set", "router.settings.redis=redis://redis")
    to_hub, to_redis = (the(hub, "NetworkPolicy", name)["spec"]["egress"] for name in ("models", "router"))
    assert {"ports": [{"port": 8080, "protocol": "TCP"}]} in to_hub
    assert {"ports": [{"port": 6379, "protocol": "TCP"}]} in to_redis
    assert not [rule for rule in the(render(), "NetworkPolicy", "router")["spec"]["egress"] if "to" not in rule][1:]


def test_names_in_queries_are_no_patterns() -> None:
    models = '[{"id":"org/a.b+c","aliases":["x|y"],"kind":"chat","path":"p"}]'
    objects = render("--set-json", f"models={models}", "--set", "chat.autoscaling.type=keda")
    query = the(objects, "ScaledObject", "chat")["spec"]["triggers"][0]["metadata"]["query"]
    assert r"model=~`org/a\.b\+c|x\|y`" in query


def test_rules_and_dashboards_are_those_of_compose() -> None:
    objects = example("eight-gpus")
    files = sorted((CHART / "files" / "rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert the(objects, "PrometheusRule")["spec"]["groups"] == groups
    for file in (CHART / "files" / "dashboards").glob("*.json"):
        data = the(objects, "ConfigMap", f"dashboard-{file.stem}")["data"]
        assert data == {f"quintet-{file.name}": file.read_text()}
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounted = {
        each["source"] for name in ("prometheus", "grafana") for each in compose[name]["volumes"] if "source" in each
    }
    assert {"./helm/quintet/files/rules", "./helm/quintet/files/dashboards"} <= mounted


def test_the_monitor_keeps_the_labels_that_rules_know() -> None:
    (endpoint,) = the(example("eight-gpus"), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert [each["targetLabel"] for each in endpoint["relabelings"]] == ["service", "job"]


def test_secrets_are_named_and_never_made() -> None:
    objects = example("single-gpu")
    assert not [each for each in objects if each["kind"] == "Secret"]
    chat = pods(objects)["q-quintet-chat"]["containers"][0]["env"]
    token = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub-token", "key": "token"}}}
    assert token in chat


@pytest.mark.parametrize("kind", ["rerank", "chat"])
def test_a_test_pod_for_each_kind_asks_its_default(kind: str) -> None:
    models = [{"id": "a", "kind": kind, "path": "p"}, {"id": "b", "kind": kind, "path": "p", "default": True}]
    objects = render("--set-json", f"models={json.dumps(models)}")
    (name,) = [name for name in pods(objects) if "-test-" in name]
    assert name.endswith(f"-test-{kind}")
    assert pods(objects)[name]["containers"][0]["command"][-2:] == [kind, "b"]


def test_notes_say_what_to_do_next() -> None:
    done = subprocess.run(
        [tool("helm"), "install", "q", str(CHART), "--dry-run=client", "--set", "chat.replicas=2"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    notes = done.stdout.partition("NOTES:")[2]
    assert "helm test q" in notes
    assert "NO API KEYS" in notes
    assert "is ReadWriteOnce" in notes


def test_the_schema_knows_every_key_of_models_yml() -> None:
    spec = importlib.util.spec_from_file_location("chart_schema", ROOT / "scripts" / "chart_schema.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (CHART / "values.schema.json").read_text() == script.written(), "run python scripts/chart_schema.py"
    known = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    for kind, less in ((ModelSpec, set()), (UpstreamSpec, {"key"}), (RouterSpec, {"keys"})):
        assert known[kind.__name__]["properties"].keys() == set(kind.__struct_fields__) - less
        assert known[kind.__name__]["additionalProperties"] is False


def _object(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return dict(value)


WRONG: list[tuple[str, Any, str]] = [
    ("replicaCount", 2, "replicaCount"),
    ("chat.replica", 2, "replica"),
    ("chat.replicas", -1, "replicas"),
    ("chat.replicas", "two", "replicas"),
    ("chat.gpu.number", 1, "number"),
    ("chat.gpu.resource", "gpu", "resource"),
    ("chat.grace", 0, "grace"),
    ("chat.resources.limit", {"memory": "1Gi"}, "limit"),
    ("chat.shm", "1 GB", "shm"),
    ("chat.probes.startup.path", "/", "path"),
    ("chat.autoscaling.type", "vpa", "type"),
    ("chat.image.digest", "latest", "digest"),
    ("chat.cache.type", "nfs", "type"),
    ("cache.accessModes", ["ReadWriteTwice"], "accessModes"),
    ("cache.size", "50 GB", "size"),
    ("image.pullPolicy", "Sometimes", "pullPolicy"),
    ("router.service.type", "Internal", "type"),
    ("router.service.port", 70000, "port"),
    ("router.settings.queue_wait", 0, "queue_wait"),
    ("router.settings.keys", "keys.yml", "keys"),
    ("hub.token", "hf_secret", "token"),
    ("ingress.paths", ["v1"], "paths"),
    ("networkPolicy.metricsFrom", [{"namespace": "monitoring"}], "metricsFrom"),
    ("monitoring.serviceMonitor.interval", "often", "interval"),
    ("keda.serverAddress", "prometheus:9090", "serverAddress"),
    ("groups.Large", {"models": ["hibari"]}, "Large"),
    ("groups.large", {"gpu": {"count": 1}}, "models"),
    ("vllm.big", {"model": "a/b"}, "gpu"),
    ("vllm.big", {"model": "a/b", "gpu": {"count": 1}, "node": 2}, "node"),
    ("models", [{"id": "m", "kind": "chat"}], "path"),
    ("models", [{"id": "m", "kind": "text", "path": "p"}], "kind"),
    ("models", [{"id": "m", "kind": "chat", "path": "p", "contxt": 1}], "contxt"),
    ("models", [{"id": "m", "kind": "chat", "path": "p", "keep": "for ever"}], "keep"),
    ("models", [{"id": "m", "kind": "chat", "path": "p", "max_batch": 0}], "max_batch"),
    ("models", [{"id": "m", "kind": "chat", "path": "p", "sampling": {"temperature": 3}}], "temperature"),
    ("upstreams", [{"url": "http://x", "key": "sk-1"}], "key"),
    # What no schema can say, the templates do.
    ("models", [{"id": "m", "kind": "chat", "path": "p"}] * 2, '"m" is taken'),
    ("groups.large", {"models": ["nobody"]}, 'no model "nobody"'),
    ("groups.large", {"models": ["hibari", "ppocr"]}, "groups.large.models"),
    ("groups.chat", {"models": ["hibari"]}, "groups.chat: the name is taken"),
    ("vllm.chat", {"model": "a/b", "gpu": {"count": 1}}, "vllm.chat: the name is taken"),
    ("modelsFile", "models: [", "modelsFile: not valid YAML"),
    ("modelsFile", "models_config: []", 'modelsFile: unknown key "models_config"'),
    ("modelsFile", "upstreams: [{url: http://x, key: sk-1}]", "upstreams[0] (http://x): key must not stand in values"),
    ("modelsFile", "models: [{id: m, kind: text, path: p}]", 'models[0] (m): kind "text"'),
    ("chat.autoscaling", {"type": "hpa", "minReplicas": 0}, "hpa cannot scale to 0"),
    ("chat.autoscaling", {"type": "keda", "minReplicas": 9}, "minReplicas is above maxReplicas"),
    ("cache", {"type": "existingClaim"}, "cache.existingClaim"),
    ("gateway", {"enabled": True}, "gateway.parentRefs"),
]


@pytest.mark.parametrize(("path", "value", "named"), WRONG, ids=[f"{path}-{n}" for n, (path, _, _) in enumerate(WRONG)])
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, path: str, value: Any, named: str) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(_object(path, value)))
    done = helm("-f", str(file))
    assert done.returncode != 0, "it was taken"
    assert named in done.stderr, done.stderr


def test_a_gateway_routes_to_the_router() -> None:
    objects = render(
        "--set",
        "gateway.enabled=true",
        "--set",
        "gateway.parentRefs[0].name=public",
        "--set",
        "gateway.hostnames[0]=a.b",
    )
    route = the(objects, "HTTPRoute", "router")["spec"]
    assert route["parentRefs"] == [{"name": "public"}]
    (rule,) = route["rules"]
    service = the(objects, "Service", "router")
    assert rule["backendRefs"] == [{"name": service["metadata"]["name"], "port": service["spec"]["ports"][0]["port"]}]
