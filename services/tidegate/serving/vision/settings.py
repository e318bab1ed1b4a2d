"""Settings of the vision server."""

import os
from pathlib import Path
from typing import Self

from pydantic import Field, field_validator, model_validator

from tidegate.chassis.settings import ChassisSettings

__all__ = ["VisionSettings"]


class VisionSettings(ChassisSettings):
    """Settings of the vision server, beyond those of every server."""

    service_name: str = Field(
        "tidegate-vision", min_length=1, description="Name in traces and logs (service.name)."
    )
    model_repository: Path = Field(
        Path("models"), description="Folder of models, <name>/<version>/model.json."
    )
    load: list[str] = Field(
        default_factory=list,
        description="Models to load at start, NAME or NAME/VERSION, separated by commas; by "
        "default every image classifier of the repository that the engine can run.",
    )
    default_model: str | None = Field(
        None,
        description="The model of a request that names none; by default the only loaded one.",
    )
    model_control: bool = Field(
        True, description="Whether clients may load and unload models (RepositoryModelLoad)."
    )
    list_image_input: bool = Field(
        True,
        description="Whether ModelMetadata and ModelConfig list the input image beside the model's "
        "own; Triton's image_client refuses a model of two inputs. Requests may use it either way.",
    )
    verify_checksums: bool = Field(
        True, description="Whether a load verifies the SHA-256 of every file that has one recorded."
    )
    cores: int = Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        le=256,
        description="Cores to compute on; by default all that the process may use.",
    )
    batch_scheduling: bool = Field(
        True,
        description="Whether a thread that becomes ready waits until another leaves its core or "
        "has used its time slice (SCHED_BATCH), instead of preempting it: more images a second "
        "from the same cores, and no wait where a core is free.",
    )
    batch_sizes: list[int] = Field(
        default_factory=lambda: [1, 2, 4, 8],
        min_length=1,
        max_length=16,
        description="Batch sizes to compile for, ascending. Run times measured at load decide "
        "which is used; on a CPU, larger batches gain little and images wait for them.",
    )
    queue_images: int = Field(
        512,
        ge=1,
        le=1_000_000,
        description="Images of unfinished requests that a model's queue holds.",
    )
    queue_mib: int = Field(
        256,
        ge=1,
        le=65536,
        description="MiB of images of unfinished requests that a model's queue holds.",
    )
    max_images_per_request: int = Field(
        64, ge=1, le=4096, description="Images that one request may have."
    )
    max_pixels: int = Field(
        64_000_000, ge=1, le=1_000_000_000, description="Pixels that one image may have."
    )
    default_deadline_s: float = Field(
        30.0, gt=0, le=3600, description="Deadline of a request that has none of its own."
    )
    client_header: str = Field(
        "x-tidegate-client",
        pattern=r"^[a-z0-9_.-]+$",
        description="Request metadata that identifies a client for fairness; without it, its "
        "certificate or address does.",
    )
    stream_window: int = Field(
        32,
        ge=1,
        le=4096,
        description="Requests of one stream that the server reads ahead of the responses.",
    )

    @field_validator("batch_sizes")
    @classmethod
    def _ascending(cls, sizes: list[int]) -> list[int]:
        if sizes != sorted(set(sizes)) or sizes[0] < 1 or sizes[-1] > 1024:
            raise ValueError("must be different sizes from 1 to 1024, ascending, as in 1,2,4")
        return sizes

    @model_validator(mode="after")
    def _any_request_fits(self) -> Self:
        if self.queue_images < self.max_images_per_request:
            raise ValueError(
                "queue_images must be at least max_images_per_request, or the largest requests "
                "never fit into the queue"
            )
        if self.queue_mib << 20 < self.max_message_bytes:
            raise ValueError(
                "queue_mib must be at least max_message_bytes, or the largest requests never fit "
                "into the queue"
            )
        return self
