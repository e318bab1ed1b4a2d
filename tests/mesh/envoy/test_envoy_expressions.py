"""Regular expressions and header values: the mesh accepts exactly those that a real Envoy accepts.

Envoy rejects a whole response for a single one that it does not know, so the two must agree.
"""

import json
import subprocess

import pytest
from google.protobuf import json_format

from tidegate.istio.expressions import LARGEST_PROGRAM, full_match, regex_problem
from tidegate.mesh.compiler import header_values
from tidegate.mesh.compiler.header_values import header_value_problem
from tidegate.mesh.envoy.addresses import Address, Collector
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.bootstrap import EnvoySettings, bootstrap

HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "envoy.extensions.filters.http.router.v3.Router"
# Envoy accepts the program of ten of these, and rejects the program of eleven.
LARGE = r"\w{999}"

ACCEPTED = (
    *("/a/(?i)b", r"\p{L}+", r"[\d-z]", "(?-i)x", r"\123", r"\Qa+\E", "[[:alpha:]]", "a{1000}"),
    *("(?P<n>a)", "(?<n>a)", r"\pN\PL", "é+", "(?U)a+", r"\x41\x{41}", "x" * 1024, LARGE * 10),
    *(r"\w{999}\pL{1000}", "|", "(?i:é)", r"\z", "[]a]", "(?P<n>a)(?P<n>b)"),
)
REJECTED = (
    *(r"\u0041", "(?!a)b", "(?<=a)b", r"(a)\1", "(?P=n)", "a{1001}", "a(", "[z-a]", "a**", "a++"),
    *("(?>a)", "(?#c)", r"\Z", r"\p{Foo}", r"\x{10FFFF}", "(a{100}){11}", LARGE * 11, "(?x)a"),
    *("*", r"\é", "[a", r"\8"),
)
# Envoy would accept these, but Istio's validation rejects them.
REJECTED_BY_ISTIO = ("x" * 1025, r"a\C", r"\\\C", "")

COMMANDS = (
    *(f"%{name}%" for name in header_values.WITHOUT_ARGUMENTS | header_values.EITHER),
    *("%REQ(x-a)%", "%START_TIME(%Y)%", "100%%", "a%PROTOCOL%b%HOSTNAME%", "", "x", "%%x%%"),
    *("%ENVIRONMENT(X)%", "%PER_REQUEST_STATE(a)%", "%REQ(x-a?x-b)%", "%DYNAMIC_METADATA(a:b)%"),
    *("%QUERY_PARAMS(ORIG)%", "%FILTER_STATE(a:PLAIN)%", "%UPSTREAM_FILTER_STATE(a)%"),
)
NO_COMMANDS = (
    "%FOO%",
    "%",
    "5%",
    "%hostname%",
    "%REQ%",
    "%PROTOCOL(x)%",
    "% %",
    "%1A%",
    "%A%%B%",
    "%REQ(a b)%",
)


def run_envoy(tmp_path, routes):
    """Whether Envoy, with the bootstrap of the mesh, accepts these routes; and its error."""
    made = bootstrap(
        EnvoySettings(
            node_id="ingress",
            controller=Address("127.0.0.1", 15010),
            traces=Collector.parse("http://127.0.0.1:15010"),
        )
    )
    config = json.loads(json_format.MessageToJson(made))
    hcm = {
        "@type": f"type.googleapis.com/{HCM}",
        "statPrefix": "x",
        "httpFilters": [
            {"name": "r", "typedConfig": {"@type": f"type.googleapis.com/{ROUTER}"}},
        ],
        "routeConfig": {"virtualHosts": [{"name": "v", "domains": ["*"], "routes": routes}]},
    }
    filters = [{"name": "h", "typedConfig": hcm}]
    config["staticResources"].setdefault("listeners", []).append(
        {
            "name": "l",
            "address": {"socketAddress": {"address": "127.0.0.1", "portValue": 0}},
            "filterChains": [{"filters": filters}],
        }
    )
    file = tmp_path / "bootstrap.json"
    file.write_text(json.dumps(config))
    command = [find_envoy(), "--mode", "validate", "--disable-hot-restart", "-l", "error"]
    done = subprocess.run(
        [*command, "--config-path", file], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode == 0, done.stderr


def conditions(*expressions):
    answer = {"directResponse": {"status": 200}}
    return [{"match": {"safeRegex": {"regex": each}}, **answer} for each in expressions]


def headers(*values):
    answer = {"match": {"prefix": "/"}, "directResponse": {"status": 200}}
    return [
        {**answer, "requestHeadersToAdd": [{"header": {"key": "a", "value": each}}]}
        for each in values
    ]


def test_envoy_accepts_every_accepted_expression(tmp_path):
    assert {each: problem for each in ACCEPTED if (problem := regex_problem(each))} == {}
    accepted, message = run_envoy(tmp_path, conditions(*ACCEPTED))
    assert accepted, message


@pytest.mark.parametrize("expression", REJECTED, ids=lambda each: each[:20])
def test_envoy_rejects_every_rejected_expression(tmp_path, expression):
    assert regex_problem(expression)
    accepted, _ = run_envoy(tmp_path, conditions("a", expression))
    assert not accepted


@pytest.mark.parametrize("expression", REJECTED_BY_ISTIO, ids=lambda each: each[:20])
def test_expression_that_istio_rejects_is_rejected(expression):
    assert regex_problem(expression)


def test_escaped_backslash_before_c_is_no_byte_class():
    assert regex_problem(r"\\C") is None
    assert regex_problem(r"\Q\C\E") is None


def test_error_names_the_largest_program():
    assert f"and Envoy accepts {LARGEST_PROGRAM}" in regex_problem(LARGE * 11)


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [
        ("/a/(?i)b", "/a/B", True),
        ("/a/(?i)b", "/A/b", False),
        (r"/\d+", "/12", True),
        (r"/\d+", "/12/x", False),
        ("a.", "aé", False),
        ("a..", "aé", True),
        ("a|ab", "ab", True),
        ("^a$", "a\n", False),
    ],
)
def test_an_expression_matches_the_whole_text_byte_by_byte(expression, text, matches):
    assert full_match(expression, text) is matches


def test_envoy_accepts_every_accepted_command(tmp_path):
    assert {each: problem for each in COMMANDS if (problem := header_value_problem(each))} == {}
    accepted, message = run_envoy(tmp_path, headers(*COMMANDS))
    assert accepted, message


@pytest.mark.parametrize("value", NO_COMMANDS)
def test_envoy_rejects_every_rejected_command(tmp_path, value):
    assert header_value_problem(value)
    accepted, _ = run_envoy(tmp_path, headers("x", value))
    assert not accepted
