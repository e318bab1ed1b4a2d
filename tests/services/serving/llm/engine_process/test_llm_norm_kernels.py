"""On a CPU, vLLM's compiled norm kernels give the results of PyTorch's operations."""

import os
from types import SimpleNamespace

import pytest

from tidegate.serving.llm.engine import launch
from tidegate.serving.llm.engine_process.norm_kernels import PRIORITIES, PROVIDER, register
from tidegate.serving.llm.engine_process.plugin import HAS_KERNELS
from tidegate.serving.llm.postprocessing.parsers import ParserNames
from tidegate.serving.llm.settings import LlmSettings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")

EPSILON = 1e-5
SHAPES = [(1, 576), (33, 576), (2, 3, 64), (5, 16), (0, 64)]
# The kernels round once, PyTorch's operations twice.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 3e-3}


@pytest.fixture(scope="module")
def torch():
    """PyTorch, with the kernels registered in the vLLM of this process."""
    torch = pytest.importorskip("torch", reason="needs vLLM: install the extra llm")
    platforms = pytest.importorskip("vllm.platforms", reason="install the extra llm")
    if not platforms.current_platform.is_cpu():
        pytest.skip("vLLM is built for another platform than the CPU")
    register()
    register()
    return torch


@pytest.fixture
def numbers(torch):
    """Makes tensors of pseudorandom numbers, the same each time."""

    def make(*shape, dtype="float32"):
        seeded = torch.Generator().manual_seed(len(shape))
        return torch.randn(*shape, generator=seeded).to(getattr(torch, dtype))

    return make


@pytest.fixture
def norm(torch):
    """Returns a norm as the kernel and as PyTorch's operations."""
    from vllm import ir

    def find(name):
        operation = getattr(ir.ops, name)
        return operation.impls[PROVIDER], operation.impls["native"].impl_fn

    return find


@pytest.fixture
def assert_close(torch):
    def check(found, expected, dtype):
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)

    return check


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_is_that_of_pytorch(numbers, norm, assert_close, shape, dtype):
    kernel, native = norm("rms_norm")
    x, weight = numbers(*shape, dtype=dtype), numbers(shape[-1], dtype=dtype)
    assert kernel.supports_args(x, weight, EPSILON)
    before = x.clone()
    assert_close(kernel.impl_fn(x, weight, EPSILON), native(x, weight, EPSILON), dtype)
    assert x.equal(before)
    with kernel.op.set_priority(PRIORITIES["rms_norm"]):
        assert kernel.op.dispatch(x, weight, EPSILON) is kernel


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_with_a_residual_is_that_of_pytorch(numbers, norm, assert_close, shape, dtype):
    kernel, native = norm("fused_add_rms_norm")
    x, residual = numbers(*shape, dtype=dtype), 3 * numbers(*shape, dtype=dtype)
    weight = numbers(shape[-1], dtype=dtype)
    expected = native(x.clone(), residual.clone(), weight, EPSILON)
    assert kernel.supports_args(x, residual, weight, EPSILON)
    with kernel.op.set_priority(PRIORITIES["fused_add_rms_norm"]):
        assert kernel.op.dispatch(x, residual, weight, EPSILON) is kernel
    assert_close(kernel.impl_fn(x, residual, weight, EPSILON), expected, dtype)


NOT_TAKEN = {
    "rows that do not fill a vector": lambda make: (make(4, 24), make(24), None),
    "rows that do not lie together": lambda make: (make(4, 128)[:, :64], make(64), None),
    "a weight of another type": lambda make: (make(4, 64, dtype="bfloat16"), make(64), None),
    "no weight": lambda make: (make(4, 64), None, None),
    "a variance of part of a row": lambda make: (make(4, 64), make(64), 32),
    "numbers of 64 bits": lambda make: (make(4, 64).double(), make(64).double(), None),
}


@pytest.mark.parametrize("what", NOT_TAKEN)
def test_a_norm_that_the_kernels_do_not_support_is_left_to_pytorch(torch, numbers, norm, what):
    from vllm import ir

    x, weight, variance_size = NOT_TAKEN[what](numbers)
    kernel, native = norm("rms_norm")
    assert not kernel.supports_args(x, weight, EPSILON, variance_size)
    with_residual, _ = norm("fused_add_rms_norm")
    assert not with_residual.supports_args(x, x.contiguous(), weight, EPSILON, variance_size)
    with ir.ops.rms_norm.set_priority([PROVIDER, "native"]):
        found = ir.ops.rms_norm(x, weight, EPSILON, variance_size)
    assert found.equal(native(x, weight, EPSILON, variance_size))


@pytest.fixture
def arguments(monkeypatch, tmp_path):
    """Returns vLLM's arguments for settings."""
    pytest.importorskip("vllm", reason="needs vLLM: install the extra llm")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.delitem(os.environ, HAS_KERNELS, raising=False)
    monkeypatch.setattr(
        "vllm.engine.arg_utils.AsyncEngineArgs", lambda **given: SimpleNamespace(**given)
    )

    def make(*, on_cpu=True, **settings):
        given = LlmSettings(model_path=tmp_path, **settings)
        return launch._engine_arguments(given, tmp_path, "model", ParserNames(), on_cpu=on_cpu)

    return make


def test_an_engine_that_does_not_compile_uses_the_kernels(arguments):
    order = arguments().ir_op_priority
    assert order.rms_norm == order.fused_add_rms_norm == [PROVIDER, "native"]
    assert os.environ[HAS_KERNELS]


@pytest.mark.parametrize(
    "other", [{"on_cpu": False}, {"enforce_eager": False}, {"cpu_kernels": False}]
)
def test_other_engines_do_not_use_the_kernels(arguments, other):
    assert not hasattr(arguments(**other), "ir_op_priority")
    assert HAS_KERNELS not in os.environ


def test_an_engine_without_the_plugin_does_not_use_the_kernels(arguments, monkeypatch):
    monkeypatch.setattr("vllm.envs.VLLM_PLUGINS", ["another"], raising=False)
    assert not hasattr(arguments(), "ir_op_priority")
    monkeypatch.setattr("vllm.envs.VLLM_PLUGINS", ["another", "tidegate"], raising=False)
    assert hasattr(arguments(), "ir_op_priority")
