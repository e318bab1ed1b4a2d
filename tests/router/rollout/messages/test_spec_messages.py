"""The messages of a rollout's spec: the same fields as files, and faults by their names."""

import enum

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from rollout_examples import CANARY, rollouts

from tidegate.rollout.messages import rollout_of, spec_message
from tidegate.rollout.spec.fields import fields_of
from tidegate.rollout.spec.model import Rollout
from tidegate.rollout.spec.quantities import Form
from tidegate.rollout.spec.reading import SpecError, read_rollouts
from tidegate.rollout.v1 import rollout_pb2


@given(rollouts())
def test_a_rollout_comes_back_from_its_message(rollout: Rollout):
    message = spec_message(rollout)
    assert rollout_of(rollout_pb2.Rollout.FromString(message.SerializeToString())) == rollout


def _models(model=Rollout, found=None):
    found = {} if found is None else found
    found[model.__name__] = model
    for field in fields_of(model):
        if field.model is not None and field.model.__name__ not in found:
            _models(field.model, found)
    return found


@pytest.mark.parametrize("model", _models().values(), ids=_models())
def test_messages_have_the_fields_of_the_model(model):
    descriptor = rollout_pb2.DESCRIPTOR.message_types_by_name[model.__name__]
    names = {each.name for each in descriptor.fields}
    if model is Rollout:
        # The two lines that say what a file is, and what the router adds.
        assert names == {"metadata", "spec", "status"}
        return
    assert names == {each.name for each in fields_of(model)}
    for field in fields_of(model):
        held = descriptor.fields_by_name[field.name]
        assert (held.is_repeated) == (field.is_list or field.is_mapping), field.name
        if field.is_mapping:
            assert held.message_type.GetOptions().map_entry, field.name
        elif field.model is not None:
            assert held.message_type.name == field.model.__name__, field.name
        elif field.form is Form.CHOICE:
            assert held.enum_type.values[0].name.endswith("_UNSPECIFIED"), field.name
        elif field.form in _MESSAGES:
            assert held.message_type.full_name == _MESSAGES[field.form], field.name
        else:
            assert held.type in _TYPES[field.form], field.name
        if not (field.required or held.is_repeated or held.enum_type or field.form is Form.TRUTH):
            has_default = field.default in ("default", False)
            assert held.has_presence or has_default, f"{field.name}: absence cannot be told"


_MESSAGES = {
    Form.DURATION: "google.protobuf.Duration",
    Form.TOLERANCE: "tidegate.rollout.v1.Tolerance",
    Form.BOUND: "tidegate.rollout.v1.Bound",
}
_TYPES = {
    Form.SHARE: {FieldDescriptor.TYPE_DOUBLE},
    Form.NUMBER: {FieldDescriptor.TYPE_DOUBLE},
    Form.WHOLE: {FieldDescriptor.TYPE_UINT32},
    Form.TRUTH: {FieldDescriptor.TYPE_BOOL},
    Form.TEXT: {FieldDescriptor.TYPE_STRING},
}


def _enums():
    found = {}
    for model in _models().values():
        for info in model.model_fields.values():
            for kind in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, enum.Enum):
                    found[kind.__name__] = kind
    return found


@pytest.mark.parametrize("kind", _enums().values(), ids=_enums())
def test_enums_have_the_same_members(kind):
    values = rollout_pb2.DESCRIPTOR.enum_types_by_name[kind.__name__].values
    prefix = values[0].name.removesuffix("UNSPECIFIED")
    assert [each.name for each in values[1:]] == [prefix + member.name for member in kind]


def test_every_enum_and_message_of_the_spec_is_in_the_model():
    of_status = {"Phase", "Verdict"}
    assert set(rollout_pb2.DESCRIPTOR.enum_types_by_name) - of_status == set(_enums())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.spec.ClearField("host"), "spec.host: is missing; name the Istio host, like"),
        (
            lambda m: setattr(m.spec.decide, "false_abort", 1.5),
            "spec.decide.false_abort: 1.5 is out of range; write a share above 0% and up to 50%",
        ),
        (
            lambda m: m.spec.strategy.canary.steps[1].pause.for_time.FromSeconds(0),
            "spec.strategy.canary.steps[1].pause.for_time: 0s is out of range; write a duration",
        ),
        (
            lambda m: m.spec.strategy.canary.steps[1].pause.for_time.FromSeconds(-5),
            "spec.strategy.canary.steps[1].pause.for_time: -5s is not a duration",
        ),
        (
            lambda m: m.spec.objectives[0].ClearField("signal"),
            "spec.objectives[0].signal: is missing; set one of SIGNAL_GRPC_FAILURES,",
        ),
        (
            lambda m: setattr(m.spec.objectives[0], "importance", 9),
            "spec.objectives[0].importance: 9 is not known; set one of IMPORTANCE_ABORT,",
        ),
        (
            lambda m: m.spec.objectives[0].tolerate.Clear(),
            "spec.objectives[0].tolerate: is empty; set ratio or difference",
        ),
        (
            lambda m: setattr(m.spec.objectives[0].tolerate, "ratio", float("nan")),
            "spec.objectives[0].tolerate.ratio: nan is out of range",
        ),
        (
            lambda m: setattr(m.spec.objectives[0].tolerate, "ratio", 0.5),
            "spec.objectives[0].tolerate: 0.5x is out of range; a ratio is 1x to 1000x",
        ),
        (
            lambda m: setattr(m.spec.objectives[1].above, "value", float("inf")),
            "spec.objectives[1].above: infs is not a bound",
        ),
        (lambda m: m.ClearField("spec"), "spec: is missing; write host, baseline"),
        (
            lambda m: m.spec.strategy.ClearField("canary"),
            "spec.strategy: is empty; a strategy has exactly one of canary,",
        ),
        (lambda m: setattr(m.spec, "candidate", "v1"), "spec.candidate: v1 is the baseline;"),
    ],
)
def test_faults_have_the_paths_of_the_message(change, words):
    (rollout,) = read_rollouts(CANARY, "f.yaml")
    message = spec_message(rollout)
    change(message)
    with pytest.raises(SpecError) as refused:
        rollout_of(message)
    assert str(refused.value).startswith(words)
    assert all(each.line == 0 and each.source == "" for each in refused.value.faults)


def test_a_message_with_little_gets_the_defaults():
    (rollout,) = read_rollouts(CANARY, "f.yaml")
    message = spec_message(rollout)
    message.spec.ClearField("decide")
    message.metadata.namespace = ""
    assert rollout_of(message).metadata.namespace == "default"
    assert rollout_of(message).spec.decide.within == 7200
