"""What an operator may say to the LLM server: one flag and one environment variable a field."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from tidegate.chassis.settings import ChassisSettings

__all__ = ["LlmSettings", "LoraAdapter", "Precision", "Runner", "SchedulingPolicy"]


class Runner(StrEnum):
    """What the model is run for."""

    GENERATE = "generate"
    POOLING = "pooling"


class Precision(StrEnum):
    """The type that the model computes in."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class SchedulingPolicy(StrEnum):
    """Which waiting request runs next."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class LoraAdapter(tuple[str, Path]):
    """A LoRA adapter as it is written on the command line: its name and its folder."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "LoraAdapter":
        """Reads ``name=path``.

        Raises:
            ValueError: There is no name, no path, or the path is not a folder.
        """
        name, _, path = text.strip().partition("=")
        if not name or not path:
            raise ValueError(f"{text!r} is not of the form name=path")
        if not Path(path).is_dir():
            raise ValueError(f"no such folder: {path}")
        return cls((name, Path(path).resolve()))


class LlmSettings(ChassisSettings):
    """Serves a language model with vLLM over gRPC."""

    service_name: str = Field(
        "tidegate-llm", min_length=1, description="Name in traces and logs (service.name)."
    )

    model_repository: Path = Field(
        Path("models"), description="Folder of models, <name>/<version>/model.json."
    )
    model_name: str = Field("smollm2", min_length=1, description="Model to serve.")
    model_version: str | None = Field(
        None, description="Version to serve; unset serves the repository's default one."
    )
    model_path: Path | None = Field(
        None,
        description="Folder of a model outside a repository, in the form that transformers loads;"
        " served as model_name and model_version ('1' where that is unset).",
    )

    runner: Runner = Field(
        Runner.GENERATE, description="generate answers prompts; pooling makes embeddings."
    )
    dtype: Precision = Field(
        Precision.AUTO,
        description="Type to compute in; auto is the model's own, and float32 on an x86 CPU without"
        " AVX-512, which is slow with numbers of 16 bits, where memory holds the weights twice as"
        " large.",
    )
    max_context_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="Longest prompt and answer together, in tokens; unset takes the model's own.",
    )
    max_running_requests: int = Field(
        64, ge=1, le=4096, description="Requests that the engine works on at once (max_num_seqs)."
    )
    max_waiting_requests: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Requests held beyond those before more are refused with RESOURCE_EXHAUSTED.",
    )
    batch_invariant: bool = Field(
        False,
        description="Give the same text for the same request and seed whatever else runs. On a CPU"
        " the engine then works on one request at a time, without a cache of prefixes, and"
        " max_running_requests has no effect; on a GPU this is vLLM's batch-invariant mode.",
    )
    scheduling_policy: SchedulingPolicy = Field(
        SchedulingPolicy.FCFS,
        description="Which waiting request runs next: the oldest, or the one"
        " with the smallest priority number.",
    )
    batch_scheduling: bool = Field(
        True,
        description="Whether a thread of the server that becomes ready waits until the engine, a"
        " process of its own, leaves a core or has had its turn (SCHED_BATCH), instead of"
        " interrupting it: more tokens a second, and no wait where a core is free.",
    )
    stalled_write_limit_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a client may leave a message unread before its request is ended.",
    )
    grammar_limit_s: float = Field(
        2.0, gt=0, le=60, description="How long a constraint may take to compile."
    )
    grammar_memory_mib: int = Field(
        1024, ge=256, le=65536, description="Memory that compiling a constraint may take, in MiB."
    )

    lora_adapters: str = Field(
        "", description="LoRA adapters that requests may name: name=folder, separated by commas."
    )
    max_lora_rank: int = Field(
        16, ge=1, le=512, description="Largest rank that an adapter may have."
    )

    kv_cache_gib: int = Field(
        1,
        ge=1,
        le=4096,
        description="Key-value cache on CPU, in GiB; on GPU it takes the share"
        " that gpu_memory_utilization leaves.",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of GPU memory that the engine may take."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=1024, description="GPUs (or NUMA nodes) that one model is split over."
    )
    cpu_kernels: bool = Field(
        True,
        description="On a CPU and without compilation, compute norms with vLLM's compiled kernels"
        " instead of with PyTorch's operations.",
    )
    enforce_eager: bool | None = Field(
        None,
        description="Run the model without compilation; unset does so on CPU, where compiling takes"
        " more than a minute at the first start and a C++ compiler, and not on GPU.",
    )

    @field_validator("lora_adapters")
    @classmethod
    def _adapters_are_folders(cls, text: str) -> str:
        adapters = _parse_adapters(text)
        if len({name for name, _ in adapters}) < len(adapters):
            raise ValueError("an adapter is named twice")
        return text

    @model_validator(mode="after")
    def _model_is_there(self) -> "LlmSettings":
        if self.model_path is not None and not (self.model_path / "config.json").is_file():
            raise ValueError(f"model_path {self.model_path} holds no config.json")
        return self

    @property
    def adapters(self) -> tuple[LoraAdapter, ...]:
        """The LoRA adapters, in the order they were given."""
        return _parse_adapters(self.lora_adapters)


def _parse_adapters(text: str) -> tuple[LoraAdapter, ...]:
    return tuple(LoraAdapter.parse(each) for each in text.split(",") if each.strip())
