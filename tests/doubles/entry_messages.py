"""Any Protobuf message of a type, for tests of what outsiders send."""

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct
from hypothesis import strategies as st


def messages(kind, depth=4):
    """Any message of a type, a few levels deep."""
    fields = {}
    for field in kind.DESCRIPTOR.fields:
        value = _values(field, depth)
        if value is not None:
            fields[field.name] = value

    def build(chosen):
        message = kind()
        for name, value in chosen.items():
            field = kind.DESCRIPTOR.fields_by_name[name]
            target = getattr(message, name)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                for key, each in value.items():
                    if isinstance(each, str):
                        target[key] = each
                    else:
                        target[key].CopyFrom(each)
            elif field.is_repeated:
                target.extend(value)
            elif field.message_type is not None:
                target.CopyFrom(value)
            else:
                setattr(message, name, value)
        return message

    return st.fixed_dictionaries({}, optional=fields).map(build)


_TEXT = st.text(max_size=20) | st.sampled_from(
    ["outbound|1|a|b", "/a.B/C", "-", "grpc-status", "14", "application/grpc", "traceparent", "DC"]
)
_SCALARS = {
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=20),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: st.floats(),
    FieldDescriptor.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: st.integers(-(2**31), 2**31 - 1),
}


def _values(field, depth):
    if field.message_type is None:
        value = _SCALARS[field.type]
        return st.lists(value, max_size=2) if field.is_repeated else value
    if depth == 0 or field.message_type.full_name == Struct.DESCRIPTOR.full_name:
        return None
    if field.message_type.GetOptions().map_entry:
        of = field.message_type.fields_by_name["value"]
        value = _TEXT if of.message_type is None else messages(of.message_type._concrete_class, 1)
        return st.dictionaries(_TEXT, value, max_size=3)
    value = messages(field.message_type._concrete_class, depth - 1)
    return st.lists(value, max_size=2) if field.is_repeated else value
