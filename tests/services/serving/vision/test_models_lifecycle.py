"""Loading, replacing and unloading models, with engines whose runs the test controls."""

import asyncio
import json
import os
import shutil

import pytest
from engine_double import EngineDouble

from tidegate.chassis.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tidegate.chassis.health import Health
from tidegate.serving.repository import CorruptFileError, EntryNotFoundError, Precision, Repository
from tidegate.serving.vision.batching.inference_request import EncodedImage, InferenceRequest
from tidegate.serving.vision.batching.model_queue import QueueLimits
from tidegate.serving.vision.batching.worker_pool import WorkerPool
from tidegate.serving.vision.errors import EngineError
from tidegate.serving.vision.loading import ModelLoader
from tidegate.serving.vision.models import ModelRegistry, ModelState


class RegistryHarness:
    """A model registry over the test's own repository, and the engines that it loaded."""

    def __init__(self, root, pool, **how):
        self.engines = []
        self.failure = None
        self.classes = 3
        self.may_open = None
        self.pool = pool
        loader = ModelLoader(
            Repository(root),
            self._open,
            precisions={Precision.FP32, Precision.INT8},
            limits=QueueLimits(100, 1 << 20),
            max_pixels=10_000,
        )
        self.models = ModelRegistry(loader, pool, **how)

    def _open(self, entry):
        if self.may_open is not None:
            assert self.may_open.wait(20)
        if self.failure is not None:
            raise self.failure
        self.engines.append(EngineDouble(classes=self.classes))
        return self.engines[-1]

    def states(self):
        return {f"{each.name}/{each.version}": each.state for each in self.models.versions()}

    def submit(self, encode, picture, name="net", version=""):
        loaded = self.models.find(name, version)
        request = InferenceRequest(
            [EncodedImage(encode(picture(8, 8), "PNG"))],
            top_k=1,
            client=lambda: "a",
            deadline_s=1e12,
            accepted_s=0.0,
            loop=asyncio.get_running_loop(),
        )
        self.pool.submit(loaded.queue, request)
        return request


@pytest.fixture
def make_registry(tmp_path):
    """Makes registry harnesses; closes them at the end."""
    made = []

    def make(**how):
        pool = WorkerPool(2)
        pool.__enter__()
        made.append(RegistryHarness(tmp_path / "models", pool, **how))
        return made[-1]

    yield make
    for each in made:
        for engine in each.engines:
            engine.release()
        each.pool.__exit__(None, None, None)


def touch(folder):
    """Changes a model's files as a new build does."""
    path = folder / "model.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"description": "built anew"}))
    os.utime(path, ns=(1, 1))


async def test_loading_makes_a_version_ready(make_registry, write_model):
    write_model("net", "1")
    harness = make_registry()
    assert harness.states() == {"net/1": ModelState.UNLOADED}
    with pytest.raises(NotFound):
        harness.models.find("net", "1")
    await harness.models.load("net", "1")
    assert harness.states() == {"net/1": ModelState.READY}
    assert harness.models.find("net", "1").entry.labels == ("cat", "dog", "owl")
    assert harness.models.is_ready("net", "")


async def test_a_second_load_of_unchanged_files_changes_nothing(make_registry, write_model):
    write_model()
    harness = make_registry()
    await harness.models.load("net", "1")
    loaded = harness.models.find("net", "1")
    await harness.models.load("net", "1")
    assert harness.models.find("net", "1") is loaded
    assert len(harness.engines) == 1


async def test_a_changed_model_serves_before_the_old_one_is_freed(
    make_registry, write_model, picture, encode, eventually
):
    folder = write_model()
    harness = make_registry()
    await harness.models.load("net", "1")
    old = harness.engines[0]
    old.hold()
    in_flight = harness.submit(encode, picture)
    touch(folder)
    reload = asyncio.create_task(harness.models.load("net", "1"))
    await eventually(lambda: harness.models.find("net", "1").engine is not old)
    # The new version serves while the old one still has a request.
    await harness.submit(encode, picture).future
    assert (in_flight.future.done(), old.closed, reload.done()) == (False, False, False)
    old.release()
    await reload
    await in_flight.future
    assert old.closed
    assert harness.models.find("net", "1").entry.metadata.description == "built anew"


async def test_the_gauge_of_a_replaced_model_stays(make_registry, write_model):
    from prometheus_client import REGISTRY

    labels = {"model": "gauged-net", "model_version": "1"}

    def gauge():
        return REGISTRY.get_sample_value("tidegate_vision_held_images", labels)

    folder = write_model("gauged-net", "1")
    harness = make_registry()
    await harness.models.load("gauged-net", "1")
    touch(folder)
    await harness.models.load("gauged-net", "1")
    assert gauge() == 0
    await harness.models.unload("gauged-net", "1")
    assert gauge() is None


async def test_a_version_continues_to_serve_when_its_replacement_fails(
    make_registry, write_model, picture, encode
):
    folder = write_model()
    harness = make_registry()
    await harness.models.load("net", "1")
    touch(folder)
    harness.failure = EngineError("cannot be compiled")
    with pytest.raises(EngineError):
        await harness.models.load("net", "1")
    assert harness.states() == {"net/1": ModelState.READY}
    await harness.submit(encode, picture).future
    (folder / "labels.txt").unlink()
    with pytest.raises(CorruptFileError):
        await harness.models.load("net", "1")
    await harness.submit(encode, picture).future


async def test_unloading_waits_for_accepted_requests(
    make_registry, write_model, picture, encode, eventually
):
    write_model()
    harness = make_registry()
    await harness.models.load("net", "1")
    (engine,) = harness.engines
    engine.hold()
    accepted = [harness.submit(encode, picture) for _ in range(3)]
    unload = asyncio.create_task(harness.models.unload("net", "1"))
    await eventually(lambda: harness.states() == {"net/1": ModelState.UNLOADING})
    with pytest.raises(Unavailable) as refused:
        harness.models.find("net", "1")
    assert refused.value.reason == "MODEL_NOT_READY"
    assert (unload.done(), engine.closed) == (False, False)
    engine.release()
    await unload
    assert all(request.future.done() for request in accepted)
    assert engine.closed
    assert harness.states() == {"net/1": ModelState.UNLOADED}
    await harness.models.load("net", "1")
    assert len(harness.engines) == 2


@pytest.mark.parametrize("change", ["load", "unload"])
async def test_a_change_is_finished_when_its_caller_goes_away(
    make_registry, write_model, picture, encode, eventually, change
):
    import threading

    write_model()
    harness = make_registry()
    if change == "load":
        harness.may_open = threading.Event()
        asked = asyncio.create_task(harness.models.load("net", "1"))
        await eventually(lambda: harness.states() == {"net/1": ModelState.LOADING})
    else:
        await harness.models.load("net", "1")
        harness.engines[0].hold()
        harness.submit(encode, picture)
        asked = asyncio.create_task(harness.models.unload("net", "1"))
        await eventually(lambda: harness.states() == {"net/1": ModelState.UNLOADING})
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    if change == "load":
        harness.may_open.set()
        await eventually(lambda: harness.states() == {"net/1": ModelState.READY})
    else:
        harness.engines[0].release()
        await eventually(lambda: harness.states() == {"net/1": ModelState.UNLOADED})
        assert harness.engines[0].closed


async def test_a_version_that_cannot_be_loaded_says_why_until_it_can(make_registry, write_model):
    folder = write_model()
    harness = make_registry()
    harness.failure = EngineError("out of memory")
    with pytest.raises(EngineError):
        await harness.models.load("net", "1")
    (version,) = harness.models.versions()
    assert (version.state, version.reason) == (ModelState.FAILED, "out of memory")
    assert not harness.models.is_ready("net", "")
    with pytest.raises(Unavailable, match="failed"):
        harness.models.find("net", "1")
    harness.failure = None
    touch(folder)
    await harness.models.load("net", "1")
    assert harness.models.is_ready("net", "")


async def test_a_request_for_an_unknown_model_leaves_no_state(make_registry, write_model):
    write_model()
    harness = make_registry()
    await harness.models.load("net", "1")
    for name, version in (("net", "9"), ("nothing", "1"), ("../net", "1"), ("", "")):
        with pytest.raises(EntryNotFoundError):
            await harness.models.load(name, version)
    with pytest.raises(EntryNotFoundError):
        await harness.models.load_all(["nothing"])
    assert harness.states() == {"net/1": ModelState.READY}
    assert set(harness.models._defaults) == {"net"}
    assert harness.models.is_ready("net", "")


async def test_models_that_are_not_loaded_yet_are_unavailable_and_not_unknown(
    make_registry, write_model, eventually
):
    import threading

    write_model("net", "1")
    write_model("net", "2")
    harness = make_registry()
    harness.may_open = threading.Event()
    loading = asyncio.create_task(harness.models.load_all([]))
    await eventually(lambda: set(harness.states().values()) == {ModelState.LOADING})
    for version in ("1", "2", ""):
        with pytest.raises(Unavailable, match=r"loading|not ready"):
            harness.models.find("net", version)
    assert not harness.models.is_ready("net", "")
    harness.may_open.set()
    await loading
    assert harness.models.find("net", "2").entry.version == "2"


async def test_models_after_one_that_cannot_be_loaded_are_forgotten(make_registry, write_model):
    write_model("net", "1")
    write_model("net", "2")
    write_model("net", "3")
    harness = make_registry()
    harness.failure = EngineError("it is broken")
    with pytest.raises(EngineError, match="broken"):
        await harness.models.load_all([])
    assert harness.states() == {
        "net/1": ModelState.FAILED,
        "net/2": ModelState.UNLOADED,
        "net/3": ModelState.UNLOADED,
    }


async def test_a_cancelled_load_does_not_forget_what_another_call_loads(
    make_registry, write_model, eventually
):
    import threading

    write_model("net", "1")
    gone = write_model("net", "2")
    harness = make_registry()
    harness.may_open = threading.Event()
    everything = asyncio.create_task(harness.models.load_all(["net"]))
    await eventually(lambda: harness.states().get("net/2") is ModelState.LOADING)
    second = asyncio.create_task(harness.models.load_all(["net/2"]))
    await eventually(lambda: len(harness.models._changes) == 2)
    harness.failure = EngineError("broken")
    shutil.rmtree(gone)
    harness.may_open.set()
    with pytest.raises(EngineError):
        await everything
    with pytest.raises(EntryNotFoundError):
        await second
    assert harness.states() == {"net/1": ModelState.FAILED}


async def test_only_precisions_of_the_engine_are_loaded(make_registry, write_model):
    write_model("net", "1-fp32")
    write_model("net", "1-fp16", precision={"compute": "fp16"})
    write_model("half", "1", precision={"compute": "fp16"})
    harness = make_registry()
    await harness.models.load_all([])
    ready = {place for place, state in harness.states().items() if state is ModelState.READY}
    assert ready == {"net/1-fp32"}
    await harness.models.load_all(["net"])
    assert harness.models.is_ready("net", "")
    with pytest.raises(FailedPrecondition, match="'half' has no version that this engine can run"):
        await harness.models.load_all(["half"])


async def test_only_image_classifiers_are_loaded_and_listed(make_registry, write_model, tmp_path):
    write_model()
    folder = tmp_path / "models" / "writer" / "1"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text('{"kind": "language-model"}')
    (folder / "config.json").write_text("{}")
    harness = make_registry()
    await harness.models.load_all([])
    with pytest.raises(FailedPrecondition, match="language-model"):
        await harness.models.load("writer", "1")
    assert harness.states() == {"net/1": ModelState.READY}


async def test_an_entry_that_is_unsound_is_listed_with_its_reason(make_registry, write_model):
    folder = write_model()
    (folder / "labels.txt").unlink()
    (version,) = make_registry().models.versions()
    assert version.state is ModelState.UNLOADED
    assert "labels.txt" in version.reason


async def test_a_network_that_disagrees_with_its_labels_is_not_loaded(make_registry, write_model):
    write_model(labels=("cat", "dog"))
    harness = make_registry()
    with pytest.raises(EngineError, match="2 labels, but its network has 3 classes"):
        await harness.models.load("net", "1")


async def test_a_network_without_a_row_of_scores_is_not_loaded(make_registry, write_model):
    write_model()
    harness = make_registry()
    harness.classes = 5
    with pytest.raises(EngineError, match=r"\(1, 5\)"):
        await harness.models.load("net", "1")


async def test_the_default_version_is_the_repositorys_if_ready_or_the_latest(
    make_registry, write_model, tmp_path
):
    for version in ("9", "10", "11"):
        write_model("net", version)
    marker = tmp_path / "models" / "net" / "default"
    harness = make_registry()
    assert harness.models.default_version("net") is None
    await harness.models.load("net", "9")
    await harness.models.load("net", "10")
    assert harness.models.default_version("net") == "10"
    marker.write_text("9\n")
    await harness.models.load("net", "10")
    assert harness.models.default_version("net") == "9"
    assert harness.models.find("net", "").entry.version == "9"
    marker.write_text("11")
    await harness.models.load("net", "9")
    assert harness.models.default_version("net") == "10"
    assert harness.models.find("net", "").entry.version == "10"
    marker.write_text("nonsense")
    await harness.models.unload("net", "10")
    assert harness.models.default_version("net") == "9"
    assert harness.models.find("net", "").entry.version == "9"
    assert harness.models.default_version("unknown") is None


async def test_an_empty_name_means_the_only_model_or_the_configured_one(make_registry, write_model):
    for name in ("one", "two"):
        write_model(name, "1")
    plain, configured = make_registry(), make_registry(default_model="two")
    with pytest.raises(Unavailable, match="no model is ready yet"):
        plain.models.find("", "")
    await plain.models.load("one", "1")
    assert plain.models.find("", "").entry.name == "one"
    await plain.models.load("two", "1")
    with pytest.raises(InvalidArgument, match="it serves: one, two"):
        plain.models.find("", "")
    await configured.models.load_all([])
    assert configured.models.find("", "").entry.name == "two"


async def test_the_error_of_an_unknown_model_lists_the_known_ones(make_registry, write_model):
    write_model("net", "1")
    harness = make_registry()
    with pytest.raises(NotFound, match="no model 'net'; the server has none yet"):
        harness.models.find("net", "")
    await harness.models.load("net", "1")
    with pytest.raises(NotFound, match="no version '2'; it has 1") as version:
        harness.models.find("net", "2")
    with pytest.raises(NotFound, match="no model 'other'; the server has net") as model:
        harness.models.find("other", "")
    assert (version.value.reason, model.value.reason) == ("VERSION_NOT_FOUND", "MODEL_NOT_FOUND")
    with pytest.raises(NotFound):
        await harness.models.unload("net", "2")


async def test_closing_unloads_everything(make_registry, write_model):
    for version in ("1", "2"):
        write_model("net", version)
    harness = make_registry()
    await harness.models.load_all(["net"])
    await harness.models.close()
    assert all(engine.closed for engine in harness.engines)
    assert set(harness.states().values()) == {ModelState.UNLOADED}


async def test_health_follows_the_models_from_the_start_on(
    make_registry, write_model, picture, encode, eventually
):
    for version in ("1", "2"):
        write_model("net", version)
    harness, health = make_registry(), Health(["one", "other"])

    def truth():
        assert health.is_serving("one") == health.is_serving("other") == health.is_serving()
        assert harness.models.server_ready == health.is_serving()
        return health.is_serving()

    # The server is not ready before all initial models are loaded.
    await harness.models.load("net", "1")
    assert not truth()
    await harness.models.start([], health)
    assert truth()
    await harness.models.unload("net", "2")
    assert truth()
    harness.failure = EngineError("out of memory")
    with pytest.raises(EngineError):
        await harness.models.load("net", "2")
    assert truth()
    assert not harness.models.is_ready("net", "2")
    # The last version is not ready from the start of its unloading on.
    harness.engines[0].hold()
    harness.submit(encode, picture)
    unload = asyncio.create_task(harness.models.unload("net", "1"))
    await eventually(lambda: harness.states()["net/1"] is ModelState.UNLOADING)
    assert not truth()
    harness.engines[0].release()
    await unload
    assert not truth()
    with pytest.raises(EngineError):
        await harness.models.load("net", "1")
    assert not truth()
    harness.failure = None
    await harness.models.load("net", "1")
    assert truth()
    health.shut_down()
    assert not truth()
    assert not harness.models.is_ready("net", "1")


async def test_a_replacement_never_makes_the_server_unready(make_registry, write_model):
    folder = write_model()
    harness, health = make_registry(), Health(["one"])
    await harness.models.start([], health)
    seen = []

    async def watch():
        async for state in health.watch(""):
            seen.append(state)

    watching = asyncio.create_task(watch())
    touch(folder)
    await harness.models.load("net", "1")
    await asyncio.sleep(0)
    assert len(harness.engines) == 2
    assert seen == [True]
    watching.cancel()
