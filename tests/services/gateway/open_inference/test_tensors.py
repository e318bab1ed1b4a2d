"""Tensors in JSON and in bytes: what numpy packs, in every type."""

import json
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tidegate.gateway.errors import ApiError
from tidegate.gateway.open_inference.tensors import DATATYPES, datatype_of, pack, unpack

NUMPY = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}


def packed(values, datatype, shape):
    text = values if isinstance(values, str) else json.dumps(values)
    return pack(msgspec.Raw(text.encode()), DATATYPES[datatype], shape, "inputs[0]")


def refusal(values, datatype, shape):
    with pytest.raises(ApiError) as refused:
        packed(values, datatype, shape)
    assert refused.value.status == 400
    assert len(refused.value.message) < 400
    return f"{refused.value.param}|{refused.value.message}"


@pytest.mark.parametrize("datatype", NUMPY)
@given(data=st.data())
def test_lists_flat_and_nested_become_the_bytes_of_numpy(datatype, data):
    shape = data.draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=4))
    elements = None
    if datatype.startswith("FP"):
        width = 32 if datatype == "FP32" else 64
        elements = st.floats(allow_nan=False, allow_infinity=False, width=width)
    array = data.draw(arrays.arrays(NUMPY[datatype], shape, elements=elements))
    assert packed(array.tolist(), datatype, shape) == array.tobytes()
    assert packed(array.reshape(-1).tolist(), datatype, shape) == array.tobytes()
    assert unpack(array.tobytes(), datatype, "y") == array.reshape(-1).tolist()


@given(st.lists(st.text(max_size=9), max_size=9))
def test_texts_follow_their_lengths(texts):
    raw = packed(texts, "BYTES", [len(texts)])
    assert unpack(raw, "BYTES", "y") == texts
    assert len(raw) == sum(4 + len(text.encode()) for text in texts)


def test_a_single_value_needs_no_dimension():
    assert packed([7], "INT32", []) == b"\x07\0\0\0"
    assert packed(" \n[ [ 7 ] ]", "INT32", [1, 1]) == b"\x07\0\0\0"


def test_nothing_is_a_tensor_too():
    assert packed([], "FP32", [0, 3]) == b""
    assert packed([[], []], "FP32", [2, 0]) == b""


@pytest.mark.parametrize(
    ("values", "datatype", "shape", "problem"),
    [
        ([1, 2], "FP32", [3], "data|inputs[0].data: has 2 elements; the shape [3] needs 3"),
        ([1.5], "INT32", [1], "data[0]|inputs[0].data[0]: expected `int`, got `float`"),
        ([True], "FP32", [1], "data[0]|inputs[0].data[0]: expected `float`, got `bool`"),
        ([1], "BOOL", [1], "expected `bool`, got `int`"),
        (["1"], "INT64", [1], "expected `int`, got `str`"),
        ([None], "FP32", [1], "expected `float`, got `null`"),
        ([1], "BYTES", [1], "expected `str`, got `int`"),
        ([0, 256], "UINT8", [2], "element 1 is 256, which does not fit into UINT8"),
        ([-1], "UINT64", [1], "element 0 is -1, which does not fit into UINT64"),
        ([2**63], "INT64", [1], "which does not fit into INT64"),
        ([2**64], "UINT64", [1], "which does not fit into UINT64"),
        ([1e39], "FP32", [1], "element 0 is 1e+39, which does not fit into FP32"),
        ("[1e400]", "FP64", [1], "data[0]|inputs[0].data[0]: number out of range"),
        (f"[{'9' * 5000}]", "INT64", [1], "out of range"),
        ("[NaN]", "FP32", [1], "data|inputs[0].data is not valid JSON"),
        ("[-Infinity]", "FP32", [1], "is not valid JSON"),
        ([[1, 2], [3]], "FP32", [2, 2], "is not nested as the shape [2, 2] says"),
        ([[1, 2], [3, 4]], "FP32", [4, 1], "is not nested as the shape [4, 1] says"),
        ([[1], 2], "FP32", [2, 1], "data[1]: expected `array`, got `int`"),
        ([[[1]]], "FP32", [1, 1], "is a list nested 3 deep; send a flat list, or one nested 2"),
        ("[" * 9999, "FP32", [1, 1], "is a list nested 9999 deep"),
        ("7", "FP32", [1], "is a list nested 0 deep"),
        ('{"a":1}', "FP32", [1], "is a list nested 0 deep"),
        ([1], "FP16", [1], "JSON has no form for FP16; send the tensor as binary data"),
        ([1], "BF16", [1], "JSON has no form for BF16"),
        ([1], "FP32", [2**62, 2**62], "has 1 elements; the shape [46"),
    ],
)
def test_a_wrong_list_is_refused_with_its_place(values, datatype, shape, problem):
    assert problem in refusal(values, datatype, shape)


def test_an_unknown_type_is_refused_with_those_that_there_are():
    with pytest.raises(ApiError, match="is 'FP31'; there is: BOOL, UINT8"):
        datatype_of("FP31", "inputs[0]")


@pytest.mark.parametrize(
    ("raw", "datatype", "problem"),
    [
        (np.array([math.nan], dtype="<f4").tobytes(), "FP32", "not finite"),
        (np.array([math.inf]).tobytes(), "FP64", "not finite"),
        (b"\0\0", "FP16", "JSON has no form"),
        (b"\0\0", "BF16", "JSON has no form"),
        (b"\1\0\0\0\xff", "BYTES", "no UTF-8"),
    ],
)
def test_an_output_without_a_form_in_json_is_not_made_null(raw, datatype, problem):
    with pytest.raises(ApiError, match=problem) as refused:
        unpack(raw, datatype, "logits")
    assert "ask for it as binary data" in refused.value.message
