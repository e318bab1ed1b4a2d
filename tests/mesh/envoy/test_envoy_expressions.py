"""What the mesh takes for an expression or a header's value, beside a real Envoy.

Envoy rejects a whole response for one that it does not know, so these must agree.
"""

import json
import subprocess

import pytest
from google.protobuf import json_format

from tidegate.istio.expressions import LARGEST_PROGRAM, full_match, regex_problem
from tidegate.istio.rules import header_values
from tidegate.istio.rules.header_values import header_value_problem
from tidegate.mesh.envoy.addresses import Address, Collector
from tidegate.mesh.envoy.binary import find_envoy
from tidegate.mesh.envoy.bootstrap import EnvoySettings, bootstrap

HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "envoy.extensions.filters.http.router.v3.Router"
# Ten of these make the greatest program that Envoy takes, eleven one that it does not.
LARGE = r"\w{999}"

TAKEN = (
    *("/a/(?i)b", r"\p{L}+", r"[\d-z]", "(?-i)x", r"\123", r"\Qa+\E", "[[:alpha:]]", "a{1000}"),
    *("(?P<n>a)", "(?<n>a)", r"\pN\PL", "é+", "(?U)a+", r"\x41\x{41}", "x" * 1024, LARGE * 10),
    *(r"\w{999}\pL{1000}", "|", "(?i:é)", r"\z", "[]a]", "(?P<n>a)(?P<n>b)"),
)
REFUSED = (
    *(r"\u0041", "(?!a)b", "(?<=a)b", r"(a)\1", "(?P=n)", "a{1001}", "a(", "[z-a]", "a**", "a++"),
    *("(?>a)", "(?#c)", r"\Z", r"\p{Foo}", r"\x{10FFFF}", "(a{100}){11}", LARGE * 11, "(?x)a"),
    *("*", r"\é", "[a", r"\8"),
)
# What Envoy alone would take: Istio's validation does not.
REFUSED_BY_ISTIO = ("x" * 1025, r"a\C", r"\\\C", "")

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
    """Whether Envoy, under the bootstrap of the mesh, takes these routes."""
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


def test_envoy_takes_every_expression_that_is_taken(tmp_path):
    assert {each: problem for each in TAKEN if (problem := regex_problem(each))} == {}
    taken, words = run_envoy(tmp_path, conditions(*TAKEN))
    assert taken, words


@pytest.mark.parametrize("expression", REFUSED, ids=lambda each: each[:20])
def test_envoy_refuses_an_expression_that_is_refused(tmp_path, expression):
    assert regex_problem(expression)
    taken, _ = run_envoy(tmp_path, conditions("a", expression))
    assert not taken


@pytest.mark.parametrize("expression", REFUSED_BY_ISTIO, ids=lambda each: each[:20])
def test_an_expression_that_istio_refuses_is_refused(expression):
    assert regex_problem(expression)


def test_a_backslash_before_another_makes_no_byte_of_the_letter_c():
    assert regex_problem(r"\\C") is None
    assert regex_problem(r"\Q\C\E") is None


def test_the_greatest_program_is_told():
    assert f"and Envoy takes {LARGEST_PROGRAM}" in regex_problem(LARGE * 11)


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


def test_envoy_knows_every_command_that_is_taken(tmp_path):
    assert {each: problem for each in COMMANDS if (problem := header_value_problem(each))} == {}
    taken, words = run_envoy(tmp_path, headers(*COMMANDS))
    assert taken, words


@pytest.mark.parametrize("value", NO_COMMANDS)
def test_envoy_refuses_a_command_that_is_refused(tmp_path, value):
    assert header_value_problem(value)
    taken, _ = run_envoy(tmp_path, headers("x", value))
    assert not taken
