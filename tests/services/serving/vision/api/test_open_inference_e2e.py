"""The Open Inference Protocol, used by clients that know nothing about Tidegate."""

import asyncio
import base64
import importlib.util
import json
import re
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError

from tidegate.inference.v2 import model_config_pb2, open_inference_pb2_grpc
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.vision.batching.worker_pool import WorkerPool
from tidegate.vision.v1 import vision_pb2 as pb

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session")]

HERE = Path(__file__).parent
NETWORK, VERSION = "efficientnet-lite0", "1-int8"
CATS = {281, 282, 285}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def server(models_root, serving, tmp_path_factory):
    """A server of one version, which clients may load and unload."""
    root = tmp_path_factory.mktemp("models")
    (root / NETWORK).mkdir()
    (root / NETWORK / VERSION).symlink_to(models_root / NETWORK / VERSION)
    async with serving(root, batch_sizes=[1, 2]) as server:
        yield server


async def output_of(*command):
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(90):
        output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def cat(photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "cat.jpg"
    path.write_bytes(photographs["cat"][0])
    return path


def needs(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"no {package}; install requirements/dev.txt")


async def test_an_unmodified_triton_client_works(server, cat):
    needs("tritonclient")
    seen = await output_of(HERE / "unmodified_triton_client.py", server.address, cat)
    assert [seen[key] for key in ("live", "ready", "model ready", "unknown ready")] == [
        *(True, True, True, False),
    ]
    assert (seen["server"]["name"], seen["server"]["version"]) == ("tidegate", version("tidegate"))
    assert seen["model"] == {
        "name": NETWORK,
        "versions": [VERSION],
        "platform": "onnx_openvino",
        "inputs": [
            {"name": "input", "datatype": "FP32", "shape": ["-1", "3", "224", "224"]},
            {"name": "image", "datatype": "BYTES", "shape": ["-1", "1"]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": ["-1", "1000"]}],
    }
    assert seen["config"] == {
        "name": NETWORK,
        "platform": "onnx_openvino",
        "backend": "openvino",
        "max_batch_size": 64,
        "input": [
            {
                "name": "input",
                "data_type": "TYPE_FP32",
                "format": "FORMAT_NCHW",
                "dims": ["3", "224", "224"],
                "optional": True,
            },
            {"name": "image", "data_type": "TYPE_STRING", "dims": ["1"], "optional": True},
        ],
        "output": [
            {
                "name": "logits",
                "data_type": "TYPE_FP32",
                "dims": ["1000"],
                "label_filename": "labels.txt",
            }
        ],
        "default_model_filename": "model.onnx",
        "dynamic_batching": {
            "preferred_batch_size": [1, 2],
            "priority_levels": "3",
            "default_priority_level": "2",
        },
    }
    best = seen["image"].pop("best")
    assert seen["image"] == {"id": "me", "version": VERSION, "shape": [2, 1000]}
    assert best[0] == best[1]
    assert best[0] in CATS
    assert seen["tensor"] == [[3, 1000], "float32", True]
    shape, texts = seen["classes"]
    assert shape == [1, 3]
    values, numbers, labels = zip(*(text.split(":", 2) for text in texts), strict=True)
    assert [float(value) for value in values] == sorted(map(float, values), reverse=True)
    assert {int(number) for number in numbers} == CATS
    assert int(numbers[0]) == best[0]
    assert all("cat" in label or "tabby" in label for label in labels)
    assert seen["callback"] == [None, best[0]]
    assert seen["asynchronous"] == [True, best[0]]

    first, failed, last = seen["stream"]
    assert (first, last) == (["0", best[0]], ["2", best[0]])
    assert "is not a JPEG, PNG or WebP file" in failed[1]
    first, failed = seen["strict stream"]
    assert first == ["0", best[0]]
    assert failed[0] == "StatusCode.INVALID_ARGUMENT"

    for name in ("plain", "decoupled"):
        assert seen[f"{name} until final"] == [[True, True], [False, True], [True, True]]
    final = {"triton_final_response": True}
    assert seen["raw stream"] == [["0", False, final], ["1", True, final]]
    assert seen["pixels"] == best[0]
    assert seen["every class"] == [1, 1000]

    errors = seen["errors"]
    assert "shared memory, which is not supported" in errors["shared input"][1]
    assert "shared memory, which is not supported" in errors["shared output"][1]
    assert "parameters['tiemout']" in errors["custom parameter"][1]
    assert {kind: status for kind, (status, _) in errors.items()} == {
        "unknown model": "StatusCode.NOT_FOUND",
        "wrong type": "StatusCode.INVALID_ARGUMENT",
        "wrong shape": "StatusCode.INVALID_ARGUMENT",
        "no image": "StatusCode.INVALID_ARGUMENT",
        "expired": "StatusCode.DEADLINE_EXCEEDED",
        **dict.fromkeys(
            ("shared input", "shared output", "custom parameter", "sequence"),
            "StatusCode.INVALID_ARGUMENT",
        ),
        **dict.fromkeys(("config override", "file override"), "StatusCode.INVALID_ARGUMENT"),
        "unknown load": "StatusCode.NOT_FOUND",
        "unknown unload": "StatusCode.NOT_FOUND",
    }
    assert "takes [1…64, 3, 224, 224]" in errors["wrong shape"][1]

    (statistics,) = seen["statistics"]
    counts = statistics["inference_stats"]
    images = int(statistics["inference_count"])
    assert images >= 10
    assert int(statistics["execution_count"]) <= images
    assert int(counts["success"]["count"]) >= 7
    # The requests without an image, and on the strict stream the next one if it was accepted.
    assert int(counts["fail"]["count"]) in {6, 7}
    assert all(int(counts[stage]["ns"]) > 0 for stage in ("success", "queue", "compute_infer"))
    batches = {int(each["batch_size"]): each for each in statistics["batch_stats"]}
    assert (
        sum(size * int(each["compute_infer"]["count"]) for size, each in batches.items()) == images
    )
    assert seen["index"] == [{"name": NETWORK, "version": VERSION, "state": "READY"}]

    ready, state, failed = seen["unloaded"]
    assert (ready, state, failed[0]) == (False, "UNAVAILABLE", "StatusCode.NOT_FOUND")
    assert seen["loaded again"] == [True, True, best[0]]


async def test_an_unmodified_kserve_client_works(server, cat):
    needs("kserve")
    seen = await output_of(HERE / "unmodified_kserve_client.py", server.address, cat)
    assert (seen["live"], seen["ready"], seen["model ready"]) == (True, True, True)
    by_raw, by_typed, same = seen["tensors"]
    assert by_raw == by_typed
    assert by_raw[:3] == ["me", VERSION, [2, 1000]]
    assert same
    assert seen["image"][:3] == ["me", VERSION, [1, 1000]]
    assert seen["image"][3] in CATS
    assert seen["error"][0] == "NOT_FOUND"
    assert "no model 'resnet'" in seen["error"][1]


DESCRIBE = """
import base64, json
from google.protobuf import descriptor_pb2
from tritonclient.grpc import model_config_pb2, service_pb2
files = []
for module in (service_pb2, model_config_pb2):
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    files.append(base64.b64encode(file.SerializeToString()).decode())
print(json.dumps(files))
"""


def described(file):
    """Every field, enum value and method of a proto file, by its full name."""
    found = {}

    def walk(messages, prefix):
        for message in messages:
            name = f"{prefix}.{message.name}"
            for field in message.field:
                oneof = (
                    message.oneof_decl[field.oneof_index].name
                    if field.HasField("oneof_index")
                    else None
                )
                found[f"{name}.{field.name}"] = (
                    *(field.number, field.type, field.label, field.type_name, oneof),
                )
            values(message.enum_type, name)
            walk(message.nested_type, name)

    def values(enums, prefix):
        for enum in enums:
            found.update({f"{prefix}.{enum.name}.{each.name}": each.number for each in enum.value})

    values(file.enum_type, f".{file.package}")
    walk(file.message_type, f".{file.package}")
    for service in file.service:
        for method in service.method:
            found[f"{service.name}/{method.name}"] = (
                *(method.input_type, method.output_type),
                *(method.client_streaming, method.server_streaming),
            )
    return found


async def test_every_message_and_method_is_tritons():
    needs("tritonclient")
    theirs, ours = {}, {}
    for data in await output_of("-c", DESCRIBE):
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(data))
        assert file.package == "inference"
        theirs |= described(file)
    for module in (oip, model_config_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        assert file.package == "inference"
        ours |= described(file)
    assert {name: theirs.get(name) for name in ours} == ours
    # Omitted messages are omitted whole: each message of ours has every field of Triton's, except
    # those of the configuration, which have only the fields that apply here.
    shortened = {
        f".inference.{name}"
        for name in ("ModelConfig", "ModelInput", "ModelOutput", "ModelDynamicBatching")
    }
    messages = {name.rpartition(".")[0] for name in ours if name.startswith(".")} - shortened
    missing = {name for name in theirs if name.rpartition(".")[0] in messages} - ours.keys()
    assert missing == set()
    left_out = {name.partition("/")[2] for name in theirs.keys() - ours.keys() if "/" in name}
    assert left_out == {
        *("TraceSetting", "LogSettings"),
        *(f"{kind}SharedMemory{what}" for kind in ("System", "Cuda")
          for what in ("Status", "Register", "Unregister")),
    }  # fmt: skip


def tensor_request(values, **fields):
    return oip.ModelInferRequest(
        model_name=NETWORK,
        inputs=[{"name": "input", "datatype": "FP32", "shape": values.shape}],
        raw_input_contents=[values.tobytes()],
        **fields,
    )


async def test_both_protocols_return_the_same_results(server, photographs):
    image = photographs["coffee"][0]
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    asked = oip.ModelInferRequest(
        inputs=[
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "contents": {"bytes_contents": [image]},
            }
        ]
    )
    call = stub.ModelInfer(asked)
    logits = np.frombuffer((await call).raw_output_contents[0], dtype="<f4")
    response = await server.vision.Classify(
        pb.ClassifyRequest(images=[pb.Image(encoded=image)], include_logits=True)
    )
    assert logits == pytest.approx(np.array(response.results[0].logits), abs=1e-2)
    trailers = dict(await call.trailing_metadata())
    assert trailers["tidegate-model-version"] == VERSION
    assert trailers["tidegate-top1"] == str(logits.argmax())
    best = response.results[0].classifications[0].score
    assert float(trailers["tidegate-confidence"]) == pytest.approx(best, abs=1e-2)


async def test_model_control_can_be_turned_off(models_root, serving):
    values = {"load": [f"{NETWORK}/{VERSION}"], "batch_sizes": [1], "model_control": False}
    async with serving(models_root, **values) as server:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        for call in (
            stub.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=NETWORK)),
            stub.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name=NETWORK)),
        ):
            with pytest.raises(AioRpcError) as refused:
                await call
            assert refused.value.code() is StatusCode.UNIMPLEMENTED
        await server.vision.GetModel(pb.GetModelRequest())


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("RepositoryModelLoad", oip.RepositoryModelLoadRequest(), "model_name"),
        (
            "RepositoryModelLoad",
            oip.RepositoryModelLoadRequest(repository_name="r", model_name="m"),
            "repository_name",
        ),
        (
            "RepositoryModelLoad",
            oip.RepositoryModelLoadRequest(
                model_name="m", parameters={"config": {"string_param": "{}"}}
            ),
            "parameters['config']",
        ),
        *(
            (
                f"RepositoryModel{kind}",
                getattr(oip, f"RepositoryModel{kind}Request")(
                    model_name=NETWORK, parameters={name: value}
                ),
                f"parameters[{name!r}]",
            )
            for kind, name, value in (
                ("Load", "version", {"int64_param": 9}),
                ("Load", "version", {"bytes_param": b"9"}),
                ("Load", "version", {"string_param": ""}),
                ("Load", "version", {}),
                ("Load", "file:1/model.onnx", {"bytes_param": b""}),
                ("Unload", "version", {"int64_param": 9}),
                ("Unload", "version", {"bool_param": True}),
                ("Unload", "version", {"string_param": ""}),
                ("Unload", "versoin", {"string_param": VERSION}),
                ("Unload", "unload_dependents", {"string_param": "true"}),
            )
        ),
        ("RepositoryModelUnload", oip.RepositoryModelUnloadRequest(), "model_name"),
        (
            "RepositoryIndex",
            oip.RepositoryIndexRequest(repository_name="r"),
            "repository_name",
        ),
    ],
)
async def test_the_error_names_what_the_repository_does_not_support(
    server, details_of, method, request_, field
):
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    with pytest.raises(AioRpcError) as refused:
        await getattr(stub, method)(request_)
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    (violation,) = details_of(refused.value)["BadRequest"].field_violations
    assert re.fullmatch(re.escape(field), violation.field)
    # The refused request had no effect.
    ready = await stub.ModelReady(oip.ModelReadyRequest(name=NETWORK, version=VERSION))
    assert ready.ready


async def test_one_version_is_loaded_and_unloaded_by_name(server):
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    which = {"version": {"string_param": VERSION}}
    await stub.RepositoryModelUnload(
        oip.RepositoryModelUnloadRequest(model_name=NETWORK, parameters=which)
    )
    values = np.zeros((1, 3, 224, 224), dtype="<f4")
    with pytest.raises(AioRpcError) as refused:
        await stub.ModelInfer(tensor_request(values))
    assert refused.value.code() is StatusCode.NOT_FOUND
    index = await stub.RepositoryIndex(oip.RepositoryIndexRequest(ready=True))
    assert list(index.models) == []
    await stub.RepositoryModelLoad(
        oip.RepositoryModelLoadRequest(model_name=NETWORK, parameters=which)
    )
    answer = await stub.ModelInfer(tensor_request(values, id="x"))
    assert (answer.id, answer.model_version) == ("x", VERSION)
    ready = await stub.ModelReady(oip.ModelReadyRequest(name=NETWORK, version=VERSION))
    assert ready.ready


async def test_a_request_that_waits_longer_than_its_timeout_is_never_run(server):
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)

    async def run():
        statistics = await stub.ModelStatistics(oip.ModelStatisticsRequest(name=NETWORK))
        return statistics.model_stats[0].inference_count

    values = np.zeros((1, 3, 224, 224), dtype="<f4")
    before = await run()
    for kind in ("int64_param", "uint64_param"):
        with pytest.raises(AioRpcError) as refused:
            await stub.ModelInfer(
                tensor_request(values, parameters={"timeout": {kind: 1}}), timeout=60
            )
        assert refused.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert await run() == before
    for timeout_us in (0, 60_000_000):
        parameters = {"timeout": {"int64_param": timeout_us}, "priority": {"uint64_param": 1}}
        await stub.ModelInfer(tensor_request(values, parameters=parameters))


async def test_metadata_can_omit_the_input_image(models_root, serving, photographs):
    values = {"load": [f"{NETWORK}/{VERSION}"], "batch_sizes": [1], "list_image_input": False}
    async with serving(models_root, **values) as server:
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
        metadata = await stub.ModelMetadata(oip.ModelMetadataRequest(name=NETWORK))
        config = (await stub.ModelConfig(oip.ModelConfigRequest(name=NETWORK))).config
        assert [each.name for each in metadata.inputs] == ["input"]
        assert [(each.name, each.optional) for each in config.input] == [("input", False)]
        image = {"bytes_contents": [photographs["cat"][0]]}
        given = {"name": "image", "datatype": "BYTES", "shape": [1], "contents": image}
        await stub.ModelInfer(oip.ModelInferRequest(inputs=[given]))


async def test_timeout_and_priority_reach_the_queue(server, monkeypatch):
    submit, submitted = WorkerPool.submit, []

    def recorded(pool, queue, request):
        submitted.append((request.priority, request.deadline_s - request.accepted_s))
        submit(pool, queue, request)

    monkeypatch.setattr(WorkerPool, "submit", recorded)
    stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(server.channel)
    values = np.zeros((1, 3, 224, 224), dtype="<f4")
    timeout, priority = {"int64_param": 60_000_000}, {"uint64_param": 3}
    for parameters, deadline_s in (
        ({}, 600),
        ({"timeout": timeout, "priority": priority}, 600),
        ({"timeout": timeout, "priority": priority}, 30),
    ):
        request = tensor_request(values, parameters=parameters)
        await stub.ModelInfer(request, timeout=deadline_s)
        stream = stub.ModelStreamInfer(iter([request]), timeout=deadline_s)
        assert not (await stream.read()).error_message
        await stream.read()
    (plain, short, shorter) = submitted[::2]
    assert [each[0] for each in submitted] == [2, 2, 3, 3, 3, 3]
    assert plain[1] > 60
    assert short[1] == pytest.approx(60)
    assert shorter[1] < 59
