"""The settings of the LLM server: each field is a flag and an environment variable."""

from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from tidegate.chassis.settings import ChassisSettings

__all__ = ["LlmSettings", "LoraAdapter", "Precision", "Runner", "SchedulingPolicy"]


class Runner(StrEnum):
    """The task that the model runs for."""

    GENERATE = "generate"
    POOLING = "pooling"


class Precision(StrEnum):
    """The data type that the model computes in."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


class SchedulingPolicy(StrEnum):
    """The order in which waiting requests run."""

    FCFS = "fcfs"
    PRIORITY = "priority"


class LoraAdapter(tuple[str, Path]):
    """A LoRA adapter from the command line: its name and its folder."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> "LoraAdapter":
        """Reads ``name=path``.

        Raises:
            ValueError: The name or the path is missing, or the path is not a folder.
        """
        name, _, path = text.strip().partition("=")
        if not name or not path:
            raise ValueError(f"{text!r} must have the form name=path")
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
        None, description="Version to serve; unset serves the repository's default version."
    )
    model_path: Path | None = Field(
        None,
        description="Folder of a model outside a repository, in the format of transformers; served"
        " as model_name and model_version ('1' if that is unset).",
    )

    tool_parser: str | None = Field(
        None,
        min_length=1,
        description="Parser of vLLM that finds calls of tools in the model's answers, for example"
        " hermes. none lets the model call tools only where a request demands it. Unset takes the"
        " parser that the repository names for the model.",
    )
    reasoning_parser: str | None = Field(
        None,
        min_length=1,
        description="Parser of vLLM that separates the model's reasoning from its answer, for"
        " example deepseek_r1. none leaves reasoning in the text. Unset takes the parser that the"
        " repository names for the model.",
    )

    runner: Runner = Field(
        Runner.GENERATE, description="generate answers prompts; pooling makes embeddings."
    )
    dtype: Precision = Field(
        Precision.AUTO,
        description="Data type of the computation. auto is the model's own type. On an x86 CPU"
        " without AVX-512, which is slow with 16-bit types, auto is float32 if memory holds the"
        " weights at twice their size.",
    )
    max_context_tokens: int | None = Field(
        None,
        ge=16,
        le=10_000_000,
        description="Longest prompt and answer together, in tokens; unset takes the model's limit.",
    )
    max_running_requests: int = Field(
        64, ge=1, le=4096, description="Requests that the engine runs at once (max_num_seqs)."
    )
    max_waiting_requests: int = Field(
        256,
        ge=0,
        le=100_000,
        description="Requests that may wait; more are refused with RESOURCE_EXHAUSTED.",
    )
    batch_invariant: bool = Field(
        False,
        description="Give the same text for the same request and seed, independent of other"
        " requests. On a CPU the engine then runs one request at a time, without a prefix cache,"
        " and max_running_requests has no effect. On a GPU this is vLLM's batch-invariant mode.",
    )
    scheduling_policy: SchedulingPolicy = Field(
        SchedulingPolicy.FCFS,
        description="Which waiting request runs next: fcfs takes the oldest, priority the one with"
        " the smallest priority number.",
    )
    batch_scheduling: bool = Field(
        True,
        description="Run the server's threads with SCHED_BATCH: a thread that becomes ready does"
        " not interrupt the engine's process, but waits for a free core or for the end of the"
        " engine's time slice. This gives more tokens a second, and no wait if a core is free.",
    )
    stalled_write_limit_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="How long a client may leave a message unread before the server ends the call.",
    )
    grammar_limit_s: float = Field(
        2.0, gt=0, le=60, description="How long a constraint may take to compile."
    )
    grammar_memory_mib: int = Field(
        1024, ge=256, le=65536, description="Memory that compiling a constraint may take, in MiB."
    )

    lora_adapters: str = Field(
        "", description="LoRA adapters that requests may use: name=folder, separated by commas."
    )
    max_lora_rank: int = Field(
        16, ge=1, le=512, description="Largest rank that an adapter may have."
    )

    kv_cache_gib: int = Field(
        1,
        ge=1,
        le=4096,
        description="Size of the key-value cache on a CPU, in GiB. On a GPU the cache takes the"
        " share that gpu_memory_utilization leaves.",
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of GPU memory that the engine may take."
    )
    tensor_parallel_size: int = Field(
        1, ge=1, le=1024, description="GPUs (or NUMA nodes) that share one model."
    )
    cpu_kernels: bool = Field(
        True,
        description="On a CPU without compilation, compute norms with vLLM's compiled kernels"
        " instead of PyTorch's operations.",
    )
    enforce_eager: bool | None = Field(
        None,
        description="Run the model without compilation. Unset, this is true on a CPU, where"
        " compiling takes more than a minute at the first start and needs a C++ compiler, and"
        " false on a GPU.",
    )

    @field_validator("lora_adapters")
    @classmethod
    def _adapters_are_folders(cls, text: str) -> str:
        adapters = _parse_adapters(text)
        if len({name for name, _ in adapters}) < len(adapters):
            raise ValueError("two adapters have the same name")
        return text

    @model_validator(mode="after")
    def _model_is_there(self) -> "LlmSettings":
        if self.model_path is not None and not (self.model_path / "config.json").is_file():
            raise ValueError(f"model_path {self.model_path} contains no config.json")
        return self

    @property
    def adapters(self) -> tuple[LoraAdapter, ...]:
        """The LoRA adapters, in the order of the setting."""
        return _parse_adapters(self.lora_adapters)


def _parse_adapters(text: str) -> tuple[LoraAdapter, ...]:
    return tuple(LoraAdapter.parse(each) for each in text.split(",") if each.strip())
