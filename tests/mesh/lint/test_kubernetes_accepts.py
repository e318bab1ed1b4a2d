"""Rules about Kubernetes accept what works, and say nothing of what they cannot know."""

import textwrap
from pathlib import Path

import pytest

from tidegate.mesh.lint import Severity, read_sources

SOUND = Path(__file__).with_name("sound_cluster.yaml").read_text()
DIGEST = "@sha256:" + "0123456789abcdef" * 4
CONTAINER = f"""\
        - name: server
          image: example.com/server{DIGEST}
          ports: [{{name: grpc, containerPort: 8500}}, {{name: http-metrics, containerPort: 9090}}]
          startupProbe: {{grpc: {{port: 8500, service: startup}}}}
          readinessProbe: {{grpc: {{port: 8500, service: readiness}}}}
          livenessProbe: {{grpc: {{port: 8500, service: liveness}}}}
          lifecycle: {{preStop: {{sleep: {{seconds: 15}}}}}}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities: {{drop: [ALL]}}
"""
DEPLOYMENT = (
    """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: NAME, namespace: models}
spec:
  template:
    metadata:
      labels: {app: NAME, version: v1}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 60
      securityContext: {runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
      containers:
"""
    + CONTAINER
)
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: NAME, namespace: models}
spec:
  selector: {app: NAME}
  ports: [{name: grpc, port: 8500, targetPort: grpc}]
"""
OWN = f"image: example.com/server{DIGEST}"


def linted(tmp_path, *documents):
    path = tmp_path / "cluster.yaml"
    path.write_text("---\n".join(map(textwrap.dedent, documents)))
    return read_sources([path]).check()


def rules(tmp_path, *documents):
    return {each.rule for each in linted(tmp_path, *documents)}


def server(name="server", replacements=(), more=()):
    text = DEPLOYMENT.replace("NAME", name)
    for old, new in replacements:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text, SERVICE.replace("NAME", name), *more


def test_server_of_others_is_accepted(tmp_path):
    assert linted(tmp_path, *server()) == []


def test_health_names_of_others_are_theirs(tmp_path):
    assert linted(tmp_path, *server(replacements=[("service: readiness", "service: ready")])) == []


def test_objects_of_kubernetes_without_workloads_are_accepted(tmp_path):
    documents = [
        each
        for each in SOUND.split("---\n")
        if "kind: Deployment" not in each
        and "Autoscaler" not in each
        and "kind: ServiceAccount" not in each
    ]
    found = linted(tmp_path, *documents)
    assert {each.rule for each in found} == {"principal-from-elsewhere"}
    assert {each.severity for each in found} == {Severity.NOTE}


def test_gateway_that_the_injector_fills_in_is_accepted(tmp_path):
    found = linted(
        tmp_path,
        """\
        apiVersion: apps/v1
        kind: Deployment
        metadata: {name: ingress, namespace: ingress}
        spec:
          template:
            metadata:
              annotations: {inject.istio.io/templates: gateway}
              labels: {istio: ingress, sidecar.istio.io/inject: "true"}
            spec:
              containers: [{name: istio-proxy, image: auto}]
        """,
        """\
        apiVersion: v1
        kind: Service
        metadata: {name: ingress, namespace: ingress}
        spec:
          selector: {istio: ingress}
          ports: [{name: grpc, port: 80, targetPort: 8080}]
        """,
    )
    assert found == []


@pytest.mark.parametrize(
    "workload",
    [
        (
            "apiVersion: batch/v1\nkind: Job\nmetadata: {name: j, namespace: models}\n"
            "spec: {template: {spec: SPEC}}\n"
        ),
        (
            "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: j, namespace: models}\n"
            "spec: {schedule: '@daily', jobTemplate: {spec: {template: {spec: SPEC}}}}\n"
        ),
        "apiVersion: v1\nkind: Pod\nmetadata: {name: j, namespace: models}\nspec: SPEC\n",
    ],
    ids=["Job", "CronJob", "Pod"],
)
def test_work_that_ends_needs_no_probes_and_no_budget(tmp_path, workload):
    spec = f"{{containers: [{{name: work, image: a{DIGEST}, ports: [{{containerPort: 80}}]}}]}}"
    assert rules(tmp_path, workload.replace("SPEC", spec)) == {"not-restricted"}


def test_worker_without_ports_needs_no_probes(tmp_path):
    text, _ = server()
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        text = text.replace(f"          {kind}: {{grpc: {{port: 8500, service: ", "          # ")
    assert linted(tmp_path, text.replace("          ports: ", "          # ")) == []


def test_one_service_for_each_version_is_accepted(tmp_path):
    versions = [
        each
        for version in ("v1", "v2")
        for each in (
            DEPLOYMENT.replace("NAME, version: v1", f"vision, version: {version}").replace(
                "NAME", f"vision-{version}"
            ),
            SERVICE.replace("{app: NAME}", f"{{app: vision, version: {version}}}").replace(
                "NAME", f"vision-{version}"
            ),
        )
    ]
    assert linted(tmp_path, *versions) == []
    assert rules(tmp_path, *versions[:3]) == {"service-pins-version"}


def test_controller_with_a_role_keeps_its_token(tmp_path):
    account = [
        ("      automountServiceAccountToken: false", "      serviceAccountName: controller")
    ]
    without = server(replacements=account)
    assert rules(tmp_path, *without) == {"token-in-server"}
    binding = """\
        apiVersion: rbac.authorization.k8s.io/v1
        kind: RoleBinding
        metadata: {name: controller, namespace: models}
        subjects: [{kind: ServiceAccount, name: controller, namespace: models}]
        """
    assert linted(tmp_path, *without, binding) == []


@pytest.mark.parametrize(
    ("settings", "accepted"),
    [
        ("command: [tidegate]\n          args: [--drain-deadline-s, '30']", True),
        ("command: [tidegate]\n          args: [--drain-deadline-s=60]", False),
        ("command: [sh, -c, 'exec python -m tidegate.serving.llm --drain-deadline-s=60']", False),
        (
            "command: [tidegate]\n          env: [{name: TIDEGATE_DRAIN_DEADLINE_S, value: '60'}]",
            False,
        ),
        # A flag beats a variable.
        (
            (
                "command: [tidegate, --drain-deadline-s=20]\n"
                "          env: [{name: TIDEGATE_DRAIN_DEADLINE_S, value: '60'}]"
            ),
            True,
        ),
        ("command: [tidegate]\n          envFrom: [{configMapRef: {name: drain}}]", False),
        (
            (
                "command: [tidegate]\n          env: [{name: TIDEGATE_DRAIN_DELAY_S, "
                "valueFrom: {configMapKeyRef: {name: drain, key: delay}}}]"
            ),
            False,
        ),
        # Nothing is known of a value that another object has.
        (
            (
                "command: [tidegate]\n          env: [{name: TIDEGATE_DRAIN_DELAY_S, "
                "valueFrom: {configMapKeyRef: {name: other, key: delay}}}]"
            ),
            True,
        ),
        (
            (
                "command: [tidegate, '--drain-deadline-s=$(DEADLINE)']\n"
                "          env: [{name: DEADLINE, value: '60'}]"
            ),
            False,
        ),
        ("command: [tidegate, --termination-grace-s=60, --pre-stop-s=15]", True),
        # A server that thinks it has longer than its Pod.
        ("command: [tidegate, --termination-grace-s=90, --pre-stop-s=15]", False),
        # A program of others drains as it likes.
        ("args: [--drain-deadline-s=60]", True),
    ],
)
def test_drain_is_read_from_flags_variables_and_config_maps(tmp_path, settings, accepted):
    data = """\
        apiVersion: v1
        kind: ConfigMap
        metadata: {name: drain, namespace: models}
        data: {TIDEGATE_DRAIN_DEADLINE_S: "60", delay: "60"}
        """
    found = linted(tmp_path, *server(replacements=[(OWN, f"{OWN}\n          {settings}")]), data)
    assert {each.rule for each in found} == (set() if accepted else {"grace-under-drain"})


@pytest.mark.parametrize("command", ["[sleep, '50']", "[/bin/sleep, '50']", "[sh, -c, 'sleep 50']"])
def test_sleep_of_a_command_counts(tmp_path, command):
    text = ("preStop: {sleep: {seconds: 15}}", f"preStop: {{exec: {{command: {command}}}}}")
    assert linted(tmp_path, *server(replacements=[text])) == []
    grace = ("Seconds: 60", "Seconds: 55")
    assert rules(tmp_path, *server(replacements=[text, grace])) == {"grace-under-drain"}


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("sum(vllm:num_requests_waiting)", set()),
        ("sum(rate(istio_requests_total[1m]))", set()),
        ("avg(kube_pod_info) + up", set()),
        ("acme:queue:rate1m", set()),
        ("acme_queue", {"unchecked-metric"}),
        ("sum(vllm:gpu_cache_usage_perc)", {"unknown-metric"}),
        ("tidegate_llm_queue_seconds_sum / tidegate_llm_queue_second_count", {"unknown-metric"}),
    ],
)
def test_metrics_of_queries_are_judged(tmp_path, query, found):
    documents = server(
        more=(
            f"""\
            apiVersion: keda.sh/v1alpha1
            kind: ScaledObject
            metadata: {{name: server, namespace: models}}
            spec:
              scaleTargetRef: {{name: server}}
              maxReplicaCount: 1
              triggers: [{{type: prometheus, metadata: {{query: "{query}"}}}}, {{type: cpu}}]
            """,
            """\
            apiVersion: monitoring.coreos.com/v1
            kind: PrometheusRule
            metadata: {name: recorded, namespace: models}
            spec:
              groups:
                - {name: g, rules: [{record: "acme:queue:rate1m", expr: up}, {alert: a, expr: up}]}
            """,
        )
    )
    assert rules(tmp_path, *documents) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("vllm_num_requests_waiting", set()),
        ("istio_requests_per_second", set()),
        ("queue_per_pod", set()),
        ("queue_per_node", {"unchecked-metric"}),
    ],
)
def test_names_that_an_adapter_gives_are_known(tmp_path, name, found):
    documents = server(
        more=(
            f"""\
            apiVersion: autoscaling/v2
            kind: HorizontalPodAutoscaler
            metadata: {{name: server, namespace: models}}
            spec:
              scaleTargetRef: {{kind: Deployment, name: server}}
              maxReplicas: 1
              metrics: [{{type: Pods, pods: {{metric: {{name: {name}}}}}}}]
            """,
            """\
            apiVersion: v1
            kind: ConfigMap
            metadata: {name: adapter, namespace: monitoring}
            data:
              config.yaml: |
                rules:
                  - seriesQuery: acme_queue
                    name: {as: queue_per_pod}
            """,
        )
    )
    assert rules(tmp_path, *documents) == found


@pytest.mark.parametrize(
    ("operation", "found"),
    [
        ("{methods: [POST], paths: [/grpc.health.v1.Health/Check]}", set()),
        ("{methods: [POST], paths: [/grpc.reflection.v1.ServerReflection/*]}", set()),
        ("{methods: [POST], paths: [/envoy.service.accesslog.v3.AccessLogService/*]}", set()),
        ("{methods: [POST], paths: ['/tidegate.vision.v1.*']}", set()),
        ("{methods: [GET, POST], paths: [/v1/*, /healthz, /index.html]}", set()),
        ("{methods: [GET], ports: ['9090']}", set()),
        ("{paths: ['*/Classify']}", set()),
        ("{paths: ['/tidegate.video.*']}", {"unchecked-grpc-path"}),
        ("{paths: ['/tidegate.vision.v1.Video*']}", {"unknown-grpc-path"}),
    ],
)
def test_operations_of_policies_are_judged(tmp_path, operation, found):
    policy = f"""\
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {{name: server, namespace: models}}
        spec:
          selector: {{matchLabels: {{app: server}}}}
          rules: [{{to: [{{operation: {operation}}}]}}]
        """
    deny = """\
        apiVersion: security.istio.io/v1
        kind: AuthorizationPolicy
        metadata: {name: deny-all, namespace: istio-system}
        spec: {}
        """
    assert rules(tmp_path, *server(more=(policy, deny))) == found


@pytest.mark.parametrize(
    ("port_level", "found"),
    [("{}", {"scrape-through-mtls"}), ("{9090: {mode: PERMISSIVE}}", set())],
)
def test_port_that_takes_plain_text_is_scraped(tmp_path, port_level, found):
    authentication = f"""\
        apiVersion: security.istio.io/v1
        kind: PeerAuthentication
        metadata: {{name: server, namespace: models}}
        spec:
          selector: {{matchLabels: {{app: server}}}}
          mtls: {{mode: STRICT}}
          portLevelMtls: {port_level}
        """
    monitor = """\
        apiVersion: monitoring.coreos.com/v1
        kind: PodMonitor
        metadata: {name: server, namespace: monitoring}
        spec:
          namespaceSelector: {matchNames: [models]}
          selector: {matchLabels: {app: server}}
          podMetricsEndpoints: [{port: http-metrics}]
        """
    assert rules(tmp_path, *server(more=(authentication, monitor))) == found


@pytest.mark.parametrize(
    ("egress", "found"),
    [
        ("[{}]", set()),
        ("[{to: [{podSelector: {}}]}]", set()),
        ("[{ports: [{port: 1, endPort: 65535}, {protocol: UDP, port: 53}]}]", set()),
        ("[]", {"egress-without-dns", "egress-without-istiod"}),
        ("[{ports: [{protocol: UDP, port: 53}]}]", {"egress-without-istiod"}),
    ],
)
def test_egress_of_sidecars_is_judged_by_all_policies_together(tmp_path, egress, found):
    policies = [
        f"""\
        apiVersion: networking.k8s.io/v1
        kind: NetworkPolicy
        metadata: {{name: {name}, namespace: models}}
        spec: {{podSelector: {{}}, policyTypes: [Egress], egress: {rules_of}}}
        """
        for name, rules_of in (("one", "[{ports: [{port: 4317}]}]"), ("two", egress))
    ]
    injected = [("labels: {app: server,", "labels: {sidecar.istio.io/inject: 'true', app: server,")]
    assert rules(tmp_path, *server(replacements=injected, more=policies)) == found
    plain = rules(tmp_path, *server(more=policies))
    assert plain == found - {"egress-without-istiod"}


def test_rollouts_of_others_have_pods_too(tmp_path):
    text, service = server()
    rollout = text.replace("apps/v1", "argoproj.io/v1alpha1").replace("Deployment", "Rollout")
    assert linted(tmp_path, rollout, service) == []
    assert rules(tmp_path, rollout, service.replace("{app: server}", "{app: serve}")) == {
        "selects-no-pod"
    }


def test_items_of_a_list_are_read(tmp_path):
    text, service = server()
    items = "".join(
        "  - " + each.replace("\n", "\n    ").rstrip() + "\n"
        for each in (text, service.replace("{app: server}", "{app: serve}"))
    )
    (report,) = linted(tmp_path, f"apiVersion: v1\nkind: List\nitems:\n{items}")
    assert (report.rule, report.object) == ("selects-no-pod", "Service models/server")


@pytest.mark.parametrize(
    ("namespace", "own", "severity"),
    [
        ("prod", "", Severity.ERROR),
        ("prod", "dev", Severity.NOTE),
        ("dev", "prod", Severity.ERROR),
        ("", "", Severity.NOTE),
    ],
)
def test_nearest_environment_decides(tmp_path, namespace, own, severity):
    def mark(value):
        return f"labels: {{tidegate.dev/environment: {value}}}" if value else "annotations: {}"

    space = f"apiVersion: v1\nkind: Namespace\nmetadata: {{name: models, {mark(namespace)}}}\n"
    metadata = ("name: server, namespace: models", f"name: server, namespace: models, {mark(own)}")
    documents = server(replacements=[(DIGEST, ":1"), metadata])
    assert [each.severity for each in linted(tmp_path, space, *documents)] == [severity]


def test_kinds_that_only_istio_reads_are_skipped_beside_workloads(tmp_path):
    filter_ = """\
        apiVersion: networking.istio.io/v1alpha3
        kind: EnvoyFilter
        metadata: {name: f, namespace: models}
        spec: {}
        """
    assert linted(tmp_path, *server(), filter_) == []
    sources = read_sources([tmp_path / "cluster.yaml"])
    (left,) = sources.ignored
    assert left.endswith("EnvoyFilter models/f")
    # A laptop has no Istio that reads it.
    (report,) = linted(tmp_path, filter_)
    assert (report.rule, report.path) == ("invalid", "kind")


def test_annotation_of_the_environment_is_for_every_kind(tmp_path):
    rule = """\
        apiVersion: networking.istio.io/v1
        kind: DestinationRule
        metadata: {name: server, namespace: models, annotations: {tidegate.dev/environment: dev}}
        spec: {host: server}
        """
    assert linted(tmp_path, *server(more=(rule,))) == []
