"""Forms of YAML with one meaning: aliases, merge keys, byte order marks, tags, line ends."""

import json

import pytest
import yaml

from tidegate.istio import EditError, IstioObjectErrors, parse, plan_changes, read_files
from tidegate.istio.editing.aliases import without_aliases
from tidegate.istio.editing.shifts import Shift, shift
from tidegate.istio.reading.documents import parse_part

RULE = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: a, namespace: m}
spec: {host: a, subsets: [{name: v1}, {name: v2}]}
"""
HEAD = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: m}
spec:
  hosts: [a]
  http:
"""
PLAIN = f"""{HEAD}\
  - route:
    - destination: {{host: a, subset: v1}}
      weight: 50
    - destination: {{host: a, subset: v2}}
      weight: 50
"""
ALIAS = PLAIN.replace("50", "&w 50 # half", 1).replace("weight: 50", "weight: *w")
MERGED = f"""{HEAD}\
  - route:
    - &d
      destination: {{host: a, subset: v1}}
      weight: 50
    - <<: *d
      destination: {{host: a, subset: v2}}
"""
FLOW = f"""{HEAD}\
  - route: [&d {{destination: {{host: a, subset: v1}}, weight: 50}},
      {{<<: [*d], destination: {{host: a, subset: v2}}}}]
"""
LIST = "apiVersion: v1\nkind: List\nitems:\n- " + ALIAS.rstrip().replace("\n", "\n  ") + "\n"
ROUTE = f"""{HEAD}\
  - match: [{{headers: {{x: {{exact: "y, {{z}}: 1"}}}}}}]
    route: &r
    - destination: {{host: a, subset: v1}}
      weight: 50
    - destination: {{host: a, subset: v2}}
      weight: 50
  - route: *r
"""


def shifted(tmp_path, text, **shares):
    """Returns the text of a VirtualService after a shift."""
    (tmp_path / "rule.yaml").write_text(RULE)
    (tmp_path / "a.yaml").write_bytes(text.encode())
    loaded = read_files([tmp_path])
    after = shift(loaded.objects, Shift(host="a", weights=shares or {"v1": 75, "v2": 25}))
    (change,) = plan_changes(loaded, after)
    return change.after.decode()


def weights(text, rule=0):
    (service,) = parse(text, "a.yaml").virtual_services.values()
    return {each.destination.subset: each.weight for each in service.http[rule].route}


FORMS = {
    "plain": PLAIN,
    "alias": ALIAS,
    "alias twice": ALIAS.replace("hosts: [a]", "hosts: &h [a]\n  gateways: [mesh]"),
    "merge key": MERGED,
    "merge keys in flow style": FLOW,
    "list": LIST,
    "windows": ALIAS.replace("\n", "\r\n"),
    "byte order mark": "\ufeff" + ALIAS,
    "byte order mark, no alias": "\ufeff" + PLAIN,
    "tag": PLAIN.replace("50", '!!int "50"', 1),
    "explicit key": PLAIN.replace("weight: 50", "? weight\n      : 50", 1),
    "comment at the marker": "--- # one\n" + ALIAS + "...\n",
    "not of the plane": "# 😀\n" + ALIAS,
    "no end of line": ALIAS.rstrip("\n"),
    "json": json.dumps(yaml.safe_load(PLAIN), indent=2),
    "json with tabs": json.dumps(yaml.safe_load(PLAIN), indent="\t"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_shift_has_the_same_result_in_any_form(tmp_path, form):
    assert weights(FORMS[form]) == {"v1": 50, "v2": 50}
    after = shifted(tmp_path, FORMS[form])
    assert weights(after) == {"v1": 75, "v2": 25}
    assert after.startswith("\ufeff") == FORMS[form].startswith("\ufeff")
    assert after.count("\r\n") == FORMS[form].count("\r\n")


def test_an_alias_is_replaced_only_where_it_is_in_the_way(tmp_path):
    assert shifted(tmp_path, ALIAS) == ALIAS.replace("&w 50", "75").replace("*w", "25")
    kept = ALIAS.replace("hosts: [a]", "hosts: &h [a]")
    assert "&h [a]" in shifted(tmp_path, kept)


def test_a_destination_that_two_routes_share_is_changed_in_one_of_them(tmp_path):
    after = shifted(tmp_path, ROUTE)
    assert weights(after, 0) == {"v1": 50, "v2": 50}
    assert weights(after, 1) == {"v1": 75, "v2": 25}


def test_alias_that_cannot_be_replaced_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tidegate.istio.editing.aliases._MOST_CHARACTERS", 1)
    with pytest.raises(EditError, match=r"aliases share its parts: \*w in line 11.* write their"):
        shifted(tmp_path, ALIAS)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a: &x 1\nb: *x\n", "a: &x 1\nb: 1\n"),
        ("a: &x 'it''s'\nb: [*x, *x]\n", "a: &x 'it''s'\nb: [\"it's\", \"it's\"]\n"),
        ("a: &x {p: ~, q: yes}\n<<: *x\n", 'a: &x {p: ~, q: yes}\n<<: {"p": null, "q": yes}\n'),
        ("a: &x [1]\nb: &y [*x]\nc: *y # c\n", "a: &x [1]\nb: &y [[1]]\nc: [[1]] # c\n"),
        ("a: &x 1\nb: &x 2\nc: *x\n", None),
        ("a: &x |\n  one\n  two\nb: *x\n", 'a: &x |\n  one\n  two\nb: "one\\ntwo\\n"\n'),
        ("a: &x !own 1\nb: *x\n", None),
        ("a: &x [*x]\n", None),
    ],
)
def test_aliases_are_replaced_by_their_values(text, plain):
    if plain is None and "&x 2" in text:
        # YAML 1.2 allows two anchors of one name, and PyYAML does not.
        with pytest.raises(yaml.YAMLError):
            without_aliases(text)
        return
    assert without_aliases(text) == plain


def test_aliases_that_would_grow_without_end_are_not_replaced():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for depth in range(1, 12):
        alias = ", ".join([f"*a{depth - 1}"] * 10)
        lines.append(f"a{depth}: &a{depth} [{alias}]")
    assert without_aliases("\n".join(lines)) is None


@pytest.mark.parametrize(
    ("text", "line", "problem", "fix"),
    [
        (
            ALIAS.replace("&w ", ""),
            11,
            "*w refers to an anchor that this",
            "write &w at the value",
        ),
        (
            PLAIN + "---\n" + ALIAS.replace("&w ", ""),
            23,
            "*w refers to an anchor",
            "same document",
        ),
        (PLAIN.replace("[a]", "[*.b.com]"), 5, "begins with *", "quote it, as in '*.example.com'"),
        (PLAIN.replace("hosts: [a]", "hosts:\n  - *"), 6, "begins with *", "quote it"),
        (PLAIN.replace("  - route", "\t- route"), 7, "the indentation has a tab", "spaces"),
        (MERGED.replace("*d", "3"), 11, "'<<' merges something other than a mapping", "'<<: *def"),
        (
            PLAIN.replace("weight: 50", "<<: {weight: 1}\n      weight: 50\n      weight: 2", 1),
            11,
            "weight: is given twice",
            "keep one",
        ),
    ],
)
def test_invalid_yaml_is_reported_with_its_line(text, line, problem, fix):
    with pytest.raises(IstioObjectErrors) as caught:
        parse(text, "a.yaml")
    said = str(caught.value)
    assert said.startswith(f"a.yaml:{line}: ")
    assert problem in said
    assert fix in said


@pytest.mark.parametrize("number", ["1" * 400, "1e400", "1" * 5000])
def test_a_number_out_of_range_is_refused(number):
    text = (
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: a}\n"
        "spec: {hosts: [a.b], http: [{fault: {abort: {httpStatus: 500, percentage: {value: "
        f"{number}}}}}}}, route: [{{destination: {{host: a.b}}}}]}}]}}\n"
    )
    (problem, *_) = parse_part(text, "x").problems
    assert "percentage" in problem.path


def test_aliases_of_empty_collections_are_bounded():
    nested = "a0: &a0 [[], []]\n" + "".join(
        f"a{each}: &a{each} [{', '.join([f'*a{each - 1}'] * 10)}]\n" for each in range(1, 9)
    )
    assert without_aliases(f"{nested}last: *a8\n") is None
