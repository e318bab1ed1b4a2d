"""Describes models in the Open Inference Protocol: metadata, configuration and statistics.

The model's own tensor is the first input, because clients that send one input take the first. Some
Triton clients (``image_client``) refuse a model of two inputs; for those, the description can omit
the second input, ``image``. Requests may use it all the same.
"""

from tidegate.inference.v2 import model_config_pb2 as config
from tidegate.inference.v2 import open_inference_pb2 as oip
from tidegate.serving.repository import Layout
from tidegate.serving.vision.api.infer_requests import IMAGE_INPUT
from tidegate.serving.vision.batching.fair_queue import DEFAULT_PRIORITY, LOWEST_PRIORITY
from tidegate.serving.vision.batching.model_queue import InferenceStatistics
from tidegate.serving.vision.loading import LoadedModel

__all__ = ["config_of", "metadata_of", "statistics_of"]

_FORMATS = {
    Layout.NCHW: config.ModelInput.FORMAT_NCHW,
    Layout.NHWC: config.ModelInput.FORMAT_NHWC,
}


def metadata_of(
    loaded: LoadedModel, versions: list[str], *, with_image_input: bool
) -> oip.ModelMetadataResponse:
    """Describes a model's versions, inputs and output.

    Args:
        loaded: One of its versions.
        versions: The versions that are ready.
        with_image_input: Whether to list the input ``image``.
    """
    tensors = loaded.engine.tensors
    described = oip.ModelMetadataResponse.TensorMetadata
    metadata = oip.ModelMetadataResponse(
        name=loaded.entry.name,
        versions=versions,
        platform=loaded.engine.traits.platform,
        inputs=[
            described(name=tensors.input_name, datatype="FP32", shape=[-1, *tensors.input_shape])
        ],
        outputs=[described(name=tensors.output_name, datatype="FP32", shape=[-1, tensors.classes])],
    )
    if with_image_input:
        metadata.inputs.add(name=IMAGE_INPUT, datatype="BYTES", shape=[-1, 1])
    return metadata


def config_of(
    loaded: LoadedModel, max_images: int, *, with_image_input: bool
) -> oip.ModelConfigResponse:
    """Describes a model version's configuration, in Triton's terms.

    Args:
        loaded: The version.
        max_images: Images that one request may have.
        with_image_input: Whether to list the input ``image``.
    """
    entry, traits, tensors = loaded.entry, loaded.engine.traits, loaded.engine.tensors
    classifier = entry.image_classifier()
    inputs = [
        config.ModelInput(
            name=tensors.input_name,
            data_type=config.TYPE_FP32,
            format=_FORMATS[classifier.input.layout],
            dims=tensors.input_shape,
            # A request sends either input, so each is optional.
            optional=with_image_input,
        )
    ]
    if with_image_input:
        inputs.append(
            config.ModelInput(
                name=IMAGE_INPUT, data_type=config.TYPE_STRING, dims=[1], optional=True
            )
        )
    return oip.ModelConfigResponse(
        config=config.ModelConfig(
            name=entry.name,
            platform=traits.platform,
            backend=traits.name.partition(" ")[0],
            max_batch_size=max_images,
            input=inputs,
            output=[
                config.ModelOutput(
                    name=tensors.output_name,
                    data_type=config.TYPE_FP32,
                    dims=[tensors.classes],
                    label_filename=classifier.labels or "",
                )
            ],
            default_model_filename=entry.model_path.name,
            dynamic_batching=config.ModelDynamicBatching(
                preferred_batch_size=traits.batch_sizes,
                priority_levels=LOWEST_PRIORITY,
                default_priority_level=DEFAULT_PRIORITY,
            ),
        )
    )


def statistics_of(name: str, version: str, statistics: InferenceStatistics) -> oip.ModelStatistics:
    """Describes a version's counts and durations since it was loaded."""

    def duration(count: int, seconds: float) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=count, ns=round(seconds * 1e9))

    runs = dict(statistics.runs)
    return oip.ModelStatistics(
        name=name,
        version=version,
        last_inference=statistics.last_run_at_ms,
        inference_count=statistics.images,
        execution_count=sum(count for count, _ in runs.values()),
        inference_stats=oip.InferStatistics(
            success=duration(statistics.succeeded, statistics.succeeded_s),
            fail=duration(statistics.failed, statistics.failed_s),
            queue=duration(statistics.images, statistics.queue_s),
            compute_input=duration(statistics.images, statistics.prepare_s),
            compute_infer=duration(
                statistics.images, sum(seconds * size for size, (_, seconds) in runs.items())
            ),
        ),
        batch_stats=[
            oip.InferBatchStatistics(batch_size=size, compute_infer=duration(count, seconds))
            for size, (count, seconds) in sorted(runs.items())
        ],
    )
