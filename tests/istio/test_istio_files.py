"""Object files: an edit changes its lines and leaves the others alone."""

import dataclasses
import random
import re
from pathlib import Path

import pytest
import yaml
from examples import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tidegate.istio import (
    IstioError,
    IstioObjectErrors,
    IstioObjects,
    Kind,
    ObjectName,
    parse,
    plan_changes,
    read_files,
)
from tidegate.istio.annotations import VirtualServiceAnnotations
from tidegate.istio.destination_rule import Subset
from tidegate.istio.editing.plain_values import plain
from tidegate.istio.editing.shifts import sticky_source
from tidegate.istio.editing.yaml_text import spliced
from tidegate.istio.reading.documents import parse_part
from tidegate.istio.reading.files import parse_file
from tidegate.istio.shapes import StringMatch, StringMatchKind
from tidegate.istio.virtual_service import HttpMatchRequest, HttpRouteDestination

MESH = """\
# The vision model, behind the ingress.
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: vision        # the host's first label
  namespace: models
  labels: {team: "vision"}   # not ours
spec:
  hosts: ["*"]
  gateways: [ingress]
  http:
    # beta users
    - match:
        - headers:
            x-user-tier: {exact: beta}
      route:
        - destination: {host: vision, subset: v2}   # the canary
          weight: 5
        - destination: {host: vision, subset: v1}
          weight: 95  # the rest

      # a model may take long
      timeout: 30s
    - route:
        - destination:
            host: vision
            subset: v1
      retries: {attempts: 0}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: vision, namespace: models}
spec:
  host: vision.models.svc.cluster.local
  subsets:
  - name: v1
    labels: {version: fp32}
  # smaller and faster
  - name: v2
    labels: {version: int8}
# The end.
"""
VISION = ObjectName(Kind.VIRTUAL_SERVICE, "models", "vision")
RULE = ObjectName(Kind.DESTINATION_RULE, "models", "vision")


def written(tmp_path, text=MESH):
    path = tmp_path / "mesh.yaml"
    path.write_bytes(text.encode())
    return path


def edited(tmp_path, edit, text=MESH):
    """Returns the lines that an edit of the objects removes from their file and adds to it."""
    path = written(tmp_path, text)
    loaded = read_files([path])
    (change,) = plan_changes(loaded, edit(loaded.objects))
    after = change.after.decode()
    path.write_bytes(change.after)
    assert parse(after, "") == edit(loaded.objects)
    gone = [line for line in text.splitlines() if line not in after.splitlines()]
    come = [line for line in after.splitlines() if line not in text.splitlines()]
    return gone, come


def objects_of(file):
    return IstioObjects.of(file.objects)


def with_weights(objects, *weights):
    service = objects.virtual_services[VISION]
    rule = service.http[0]
    route = tuple(
        dataclasses.replace(each, weight=weight)
        for each, weight in zip(rule.route, weights, strict=True)
    )
    rules = (dataclasses.replace(rule, route=route), *service.http[1:])
    return objects.with_(dataclasses.replace(service, http=rules))


def test_changed_weights_touch_their_numbers_only(tmp_path):
    gone, come = edited(tmp_path, lambda objects: with_weights(objects, 10, 90))
    assert gone == ["          weight: 5", "          weight: 95  # the rest"]
    assert come == ["          weight: 10", "          weight: 90  # the rest"]


def test_added_subset_is_written_as_the_others_are(tmp_path):
    def edit(objects):
        rule = objects.destination_rules[RULE]
        subset = Subset(name="v3", labels={"version": "bf16"})
        return objects.with_(dataclasses.replace(rule, subsets=(*rule.subsets, subset)))

    gone, come = edited(tmp_path, edit)
    assert gone == []
    assert come == ["  - name: v3", "    labels: {version: bf16}"]


def test_removed_subset_takes_its_lines_and_no_comment(tmp_path):
    def edit(objects):
        rule = objects.destination_rules[RULE]
        return objects.with_(dataclasses.replace(rule, subsets=rule.subsets[1:]))

    gone, come = edited(tmp_path, edit)
    assert gone == ["  - name: v1", "    labels: {version: fp32}"]
    assert come == []


def test_new_destination_comes_in_front_with_the_host_as_it_is_written(tmp_path):
    def edit(objects):
        service = objects.virtual_services[VISION]
        rule = service.http[1]
        (old,) = rule.route
        place = dataclasses.replace(old.destination, subset="v2")
        route = (
            HttpRouteDestination(destination=place, weight=1),
            dataclasses.replace(old, weight=99),
        )
        rules = (service.http[0], dataclasses.replace(rule, route=route))
        return objects.with_(dataclasses.replace(service, http=rules))

    gone, come = edited(tmp_path, edit)
    assert gone == []
    assert come == [
        "        - destination: {host: vision, subset: v2}",
        "          weight: 1",
        "          weight: 99",
    ]


def test_annotation_is_added_where_there_was_none(tmp_path):
    def edit(objects):
        service = objects.virtual_services[VISION]
        sticky = (
            parse(
                MESH.replace(
                    "labels: {team",
                    "annotations: {tidegate.dev/sticky: 'header:x-id'}\n  labels: {team",
                ),
                "",
            )
            .virtual_services[VISION]
            .annotations
        )
        return objects.with_(dataclasses.replace(service, annotations=sticky))

    gone, come = edited(tmp_path, edit)
    assert gone == []
    assert come == ["  annotations:", "    tidegate.dev/sticky: header:x-id"]


def test_foreign_annotations_stay_when_one_is_added_and_removed(tmp_path):
    def edit(objects):
        service = objects.virtual_services[VISION]
        sticky = VirtualServiceAnnotations(sticky=sticky_source("header:x-id"))
        return objects.with_(dataclasses.replace(service, annotations=sticky))

    text = MESH.replace(
        "  labels: {team", "  annotations:\n    other/x: z  # theirs\n  labels: {team"
    )
    gone, come = edited(tmp_path, edit, text)
    assert gone == []
    assert come == ["    tidegate.dev/sticky: header:x-id"]
    (change,) = plan_changes(read_files([tmp_path]), parse(text, ""))
    assert change.after.decode() == text


@pytest.mark.parametrize("value", ["[^;]*", "a, b", "{x}", "a: b", "- a", "?", "'", "é, ü", "[x"])
def test_a_text_is_quoted_as_a_mapping_on_one_line_needs_it(tmp_path, value):
    loaded = read_files([written(tmp_path, MESH)])
    service = loaded.objects.virtual_services[VISION]
    match = HttpMatchRequest(headers={"x-user-tier": StringMatch(StringMatchKind.EXACT, value)})
    rules = (dataclasses.replace(service.http[0], match=(match,)), service.http[1])
    after = loaded.objects.with_(dataclasses.replace(service, http=rules))
    (change,) = plan_changes(loaded, after)
    assert parse(change.after.decode(), "mesh").virtual_services[VISION].http == rules
    assert change.after.decode().count("\n") == MESH.count("\n")


def test_windows_line_ends_stay(tmp_path):
    text = MESH.replace("\n", "\r\n")
    path = written(tmp_path, text)
    loaded = read_files([path])
    (change,) = plan_changes(loaded, with_weights(loaded.objects, 10, 90))
    assert change.after.decode() == text.replace("weight: 5\r", "weight: 10\r").replace("95", "90")


def test_value_that_aliases_share_is_changed_in_one_place(tmp_path):
    text = MESH.replace("{host: vision, subset: v1}\n          weight: 95", "&one {host: vision}")
    text = text.replace("          destination:\n", "").replace(
        "        - destination:\n            host: vision\n            subset: v1\n",
        "        - destination: *one\n",
    )
    loaded = read_files([written(tmp_path, text)])
    service = loaded.objects.virtual_services[VISION]
    rule = service.http[1]
    place = dataclasses.replace(rule.route[0].destination, subset="v1")
    route = (dataclasses.replace(rule.route[0], destination=place),)
    rules = (service.http[0], dataclasses.replace(rule, route=route))
    objects = loaded.objects.with_(dataclasses.replace(service, http=rules))
    (change,) = plan_changes(loaded, objects)
    assert b"*one" not in change.after
    assert parse(change.after.decode(), "mesh").virtual_services[VISION].http == rules


def test_parsing_again_keeps_equal_objects_identical(tmp_path):
    file = parse_file(tmp_path, MESH)
    changed = MESH.replace("weight: 5\n", "weight: 6\n").replace("# The end.", "# End.")
    before, after = objects_of(file), objects_of(parse_file(tmp_path, changed, [file]))
    assert after.changed_from(before) == {VISION}


def test_removed_and_added_objects_are_changes(tmp_path):
    file = parse_file(tmp_path, MESH)
    changed = MESH.split("---\n")[0].replace("name: vision ", "name: other ")
    again = parse_file(tmp_path, changed, [file])
    names = {str(name) for name in objects_of(again).changed_from(objects_of(file))}
    assert names == {
        "DestinationRule models/vision",
        "VirtualService models/other",
        "VirtualService models/vision",
    }


def test_folders_are_read_with_what_is_below_them(tmp_path):
    (tmp_path / "a" / ".git").mkdir(parents=True)
    (tmp_path / "a" / "mesh.yml").write_text(MESH)
    (tmp_path / "a" / ".git" / "mesh.yaml").write_text("not: ours")
    (tmp_path / "notes.txt").write_text("no YAML: [")
    (tmp_path / "other.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n")
    loaded = read_files([tmp_path])
    assert set(loaded.objects) == {VISION, RULE}
    assert [str(each) for each in loaded.ignored] == [f"{tmp_path}/other.yaml:1: Service x"]


def test_problems_of_all_files_are_reported_together(tmp_path):
    (tmp_path / "a.yaml").write_text(MESH.replace("weight: 5", "weight: x"))
    (tmp_path / "b.yaml").write_bytes(b"a: 1\nb: \xff\n")
    (tmp_path / "c.yaml").write_text(MESH.split("---\n")[1])
    (tmp_path / "d.yaml").write_text(MESH.split("---\n")[1])
    with pytest.raises(IstioObjectErrors) as caught:
        read_files([tmp_path])
    found = [(Path(each.source).name, each.line, each.path) for each in caught.value.problems]
    assert found == [
        ("a.yaml", 18, "spec.http[0].route[0].weight"),
        ("b.yaml", 2, ""),
        ("c.yaml", 1, "metadata.name"),
        ("d.yaml", 1, "metadata.name"),
    ]


def test_missing_path_is_named(tmp_path):
    with pytest.raises(IstioError, match=r"none.yaml cannot be read: No such file"):
        read_files([tmp_path / "none.yaml"])


def mutated(item, chance):
    """Returns an object that differs in some of its lists, numbers and texts."""
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        changes = {
            each.name: mutated(getattr(item, each.name), chance)
            for each in dataclasses.fields(item)
            if each.name
            not in ("name", "annotations", "kind", "match", "hosts", "gateways", "opaque")
        }
        return dataclasses.replace(item, **changes)
    if isinstance(item, tuple) and item and dataclasses.is_dataclass(item[0]):
        items = [mutated(each, chance) for each in item if chance.random() > 0.2] or [item[0]]
        if chance.random() < 0.3:
            items.insert(chance.randrange(len(items) + 1), chance.choice(items))
        return tuple(items)
    if isinstance(item, int) and not isinstance(item, bool) and chance.random() < 0.5:
        return chance.randrange(1, 100)
    if isinstance(item, dict) and chance.random() < 0.5:
        return {**item, "added": "yes"} if chance.random() < 0.5 else {}
    return item


@pytest.mark.parametrize(
    "style",
    [
        "mixed",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("block", "flow", "indented")),
    ],
)
@settings(max_examples=examples(100), deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_change_of_an_object_reads_back_as_it_was_meant(style, seed):
    text = {
        "block": MESH,
        "flow": re.sub(
            r"http:\n(?s:.*?)---", "http: [{route: [{destination: {host: vision}}]}]\n---", MESH
        ),
        "indented": MESH.replace("  - name", "    - name").replace(
            "    labels: {v", "      labels: {v"
        ),
        "mixed": MESH.replace("{host: vision, subset: v2}   #", "\n            host: vision #"),
    }[style]
    chance = random.Random(seed)
    for place in parse_part(text, "").objects:
        wanted = mutated(place.object, chance)
        anew = parse_part(yaml.safe_dump(plain(wanted)), "")
        assume(not anew.problems)
        assert [each.object for each in anew.objects] == [wanted]
        after = spliced(text, place.node, plain(place.object), plain(wanted))
        found = parse_part(after, "")
        assert found.problems == []
        assert [each.object for each in found.objects if each.object.name == wanted.name] == [
            wanted
        ]
        assert "# The vision model, behind the ingress.\n" in after
        assert "# The end.\n" in after
