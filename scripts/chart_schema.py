"""Write helm/quintet/values.schema.json: which values the chart takes. What stands in models.yml comes from its types.

``python scripts/chart_schema.py`` writes it; a test says when that was forgotten.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from quintet_common.models_yml import ModelSpec, RouterSpec, UpstreamSpec

FILE = Path(__file__).resolve().parents[1] / "helm" / "quintet" / "values.schema.json"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
SOME: Schema = {"type": "integer", "minimum": 1}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}
MAPPING: Schema = {"type": "object"}
STRINGS: Schema = {"type": "object", "additionalProperties": TEXT}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,28}[a-z0-9])?$"}


def table(**properties: Schema) -> Schema:
    """An object with these keys and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties}


def listing(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def choice(*values: str) -> Schema:
    return {"enum": list(values)}


def or_empty(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"const": ""}]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


IMAGE = table(repository=TEXT, tag=TEXT, digest=or_empty({"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}))
RESOURCES = table(
    requests={"type": "object", "additionalProperties": {"type": ["string", "number"]}},
    limits={"type": "object", "additionalProperties": {"type": ["string", "number"]}},
    claims=listing(MAPPING),
)
PROBE = table(
    initialDelaySeconds=COUNT, periodSeconds=SOME, timeoutSeconds=SOME, failureThreshold=SOME, successThreshold=SOME
)
PROBES = table(startup=ref("probe"), readiness=ref("probe"), liveness=ref("probe"))
CACHE: dict[str, Schema] = {
    "type": choice("claim", "existingClaim", "hostPath", "emptyDir"),
    "size": QUANTITY,
    "storageClassName": TEXT,
    "accessModes": {
        **listing(choice("ReadWriteOnce", "ReadWriteMany", "ReadOnlyMany", "ReadWriteOncePod")),
        "minItems": 1,
    },
    "existingClaim": TEXT,
    "hostPath": TEXT,
    "keep": FLAG,
}
POD: dict[str, Schema] = {
    "resources": ref("resources"),
    "extraArgs": listing(TEXT),
    "env": listing(MAPPING),
    "envFrom": listing(MAPPING),
    "volumes": listing(MAPPING),
    "volumeMounts": listing(MAPPING),
    "nodeSelector": STRINGS,
    "tolerations": listing(MAPPING),
    "affinity": MAPPING,
    "topologySpreadConstraints": listing(MAPPING),
    "priorityClassName": TEXT,
    "podAnnotations": STRINGS,
    "podLabels": STRINGS,
    "podSecurityContext": MAPPING,
    "securityContext": MAPPING,
    "replicas": COUNT,
    "image": ref("image"),
    "drainDelay": COUNT,
    "grace": SOME,
    "probes": ref("probes"),
}
WORKLOAD: dict[str, Schema] = {
    **POD,
    "gpu": table(
        count=COUNT,
        resource={"type": "string", "pattern": "^[a-z0-9.-]+/[A-Za-z0-9._-]+$"},
        runtimeClassName=TEXT,
        tolerate=FLAG,
    ),
    "shm": or_empty(QUANTITY),
    "loadSeconds": SOME,
    "strategy": MAPPING,
    "autoscaling": table(
        type=choice("none", "keda", "hpa"),
        minReplicas=COUNT,
        maxReplicas=SOME,
        requestsPerReplica=SOME,
        cooldownSeconds=COUNT,
        metrics=listing(MAPPING),
    ),
    "cache": table(**CACHE),
    "initContainers": listing(MAPPING),
}
VLLM: dict[str, Schema] = {
    **WORKLOAD,
    "model": TEXT,
    "servedName": TEXT,
    "aliases": listing(TEXT),
    "revision": TEXT,
    "nodes": SOME,
    "tensorParallel": SOME,
    "pipelineParallel": SOME,
}
SECRET = table(existingSecret=TEXT, key=TEXT)


def definitions() -> Schema:
    """The types of models.yml, and what stands in several places of the values."""
    _, types = msgspec.json.schema_components(
        [ModelSpec, UpstreamSpec, RouterSpec], ref_template="#/definitions/{name}"
    )
    types["ModelSpec"]["properties"]["keep"]["pattern"] = r"^(always|[0-9]+\s*[smh] idle)$"
    for name in ("context", "max_batch", "max_waiting"):  # what the type checks after its fields
        types["ModelSpec"]["properties"][name]["minimum"] = 1
    # Keys belong in Secrets, and the chart itself says where their files are.
    del types["UpstreamSpec"]["properties"]["key"], types["RouterSpec"]["properties"]["keys"]
    own = {"image": IMAGE, "resources": RESOURCES, "probe": PROBE, "probes": PROBES, "workload": table(**WORKLOAD)}
    return {**types, **own}


def router() -> Schema:
    return table(
        **POD,
        settings=ref("RouterSpec"),
        keys=SECRET,
        upstreams=SECRET,
        service=table(
            type=choice("ClusterIP", "NodePort", "LoadBalancer"),
            port={"type": "integer", "minimum": 1, "maximum": 65535},
            nodePort={"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
            annotations=STRINGS,
        ),
        autoscaling=table(enabled=FLAG, minReplicas=SOME, maxReplicas=SOME, cpuPercent=SOME),
    )


def monitoring() -> Schema:
    interval = {"type": "string", "pattern": "^[0-9]+(ms|s|m)$"}
    return table(
        serviceMonitor=table(enabled=FLAG, interval=interval, labels=STRINGS),
        rules=table(enabled=FLAG, labels=STRINGS),
        dashboards=table(enabled=FLAG, labels=STRINGS, annotations=STRINGS),
    )


def network_policy() -> Schema:
    peers = listing(table(namespaceSelector=MAPPING, podSelector=MAPPING, ipBlock=MAPPING))
    egress = table(enabled=FLAG, internet=FLAG, extra=listing(MAPPING))
    return table(enabled=FLAG, routerFrom=peers, metricsFrom=peers, egress=egress)


def values() -> Schema:
    paths = {**listing({"type": "string", "pattern": "^/"}), "minItems": 1}
    groups = table(**WORKLOAD, models={**listing(TEXT), "minItems": 1}) | {"required": ["models"]}
    tls = table(secretName=TEXT, hosts=listing(TEXT))
    return table(
        **{"global": MAPPING},
        nameOverride=TEXT,
        fullnameOverride=TEXT,
        commonLabels=STRINGS,
        image=table(
            registry=TEXT,
            tag=TEXT,
            pullPolicy=choice("IfNotPresent", "Always", "Never"),
            pullSecrets=listing(table(name=TEXT)),
        ),
        models=listing(ref("ModelSpec")),
        modelsFile=TEXT,
        upstreams=listing(ref("UpstreamSpec")),
        workload=ref("workload"),
        **dict.fromkeys(("chat", "multimodal", "vision", "tts", "embed"), ref("workload")),
        groups={"type": "object", "propertyNames": NAME, "additionalProperties": groups},
        vllm={
            "type": "object",
            "propertyNames": NAME,
            "additionalProperties": table(**VLLM) | {"required": ["model", "gpu"]},
        },
        vllmImage=ref("image"),
        router=router(),
        cache=table(**CACHE, shared=FLAG),
        download=table(enabled=FLAG, image=ref("image"), resources=ref("resources")),
        hub=table(existingSecret=TEXT, key=TEXT, endpoint=TEXT, offline=FLAG),
        serviceAccount=table(create=FLAG, name=TEXT, annotations=STRINGS),
        networkPolicy=network_policy(),
        podDisruptionBudget=table(enabled=FLAG, maxUnavailable={"type": ["integer", "string"]}),
        monitoring=monitoring(),
        keda=table(serverAddress={"type": "string", "pattern": "^https?://"}, pollingInterval=SOME),
        ingress=table(
            enabled=FLAG, className=TEXT, annotations=STRINGS, hosts=listing(TEXT), paths=paths, tls=listing(tls)
        ),
        gateway=table(
            enabled=FLAG,
            parentRefs=listing(MAPPING),
            hostnames=listing(TEXT),
            paths=paths,
            requestTimeout={"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"},
            annotations=STRINGS,
        ),
        tests=table(key=SECRET, timeoutSeconds=SOME),
        extraObjects=listing(MAPPING),
    )


def written() -> str:
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the chart quintet"}
    return json.dumps({**head, **values(), "definitions": definitions()}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(written())
