"""``tidegate models``: lists the models that the servers serve."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import typer
from rich.table import Table
from rich.text import Text

from tidegate.cli.addresses import LlmOption, ModelService, VisionOption, address_of
from tidegate.cli.console import JsonOption, errors, print_json, results
from tidegate.client import Client, LlmModel, TidegateRpcError, UnavailableError, VisionModel

__all__ = ["models"]

_STYLES = {"ready": "green", "loading": "yellow", "unloading": "yellow", "failed": "bold red"}


@dataclass(frozen=True, slots=True)
class _Row:
    """A model in the columns that both services share."""

    service: ModelService
    name: str
    version: str
    state: str
    precision: str
    engine: str
    facts: str
    reason: str = ""


def models(as_json: JsonOption = False, vision: VisionOption = None, llm: LlmOption = None) -> None:
    """List the models that the servers serve.

    A server that does not answer is skipped; when no server answers, the exit status is 3.
    """
    addresses = {
        ModelService.VISION: address_of(ModelService.VISION, vision),
        ModelService.LLM: address_of(ModelService.LLM, llm),
    }
    rows: list[_Row] = []
    problems: list[TidegateRpcError] = []
    for service, address in addresses.items():
        try:
            for model in _models(service, address):
                if as_json:
                    loaded = model.loaded_at.isoformat() if model.loaded_at else None
                    known = {"service": service, "address": address, **asdict(model)}
                    print_json({**known, "loaded_at": loaded})
                rows.append(_row(service, model))
        except TidegateRpcError as error:
            problems.append(error)
    if len(problems) == len(addresses):
        raise problems[0]
    if rows and not as_json:
        _print_table(rows)
    for problem in problems:
        errors().print(Text(str(problem), style="yellow"))
    if any(not _is_unreachable(problem) for problem in problems):
        raise typer.Exit(1)


def _models(service: ModelService, address: str) -> Iterator[VisionModel | LlmModel]:
    with Client(address) as client:
        yield from client.vision.models() if service is ModelService.VISION else client.llm.models()


def _row(service: ModelService, model: VisionModel | LlmModel) -> _Row:
    if isinstance(model, VisionModel):
        shape = "x".join(str(length) for length in model.input_shape)
        facts = f"{model.num_classes} classes, {shape}" if model.num_classes else ""
        version = f"{model.version} *" if model.is_default else model.version
        return _Row(
            *(service, model.name, version, model.state, model.precision, model.engine),
            facts=facts,
            reason=model.reason,
        )
    adapters = f", {len(model.lora_adapters)} adapters" if model.lora_adapters else ""
    return _Row(
        *(service, model.name, model.version, "ready" if model.ready else "loading"),
        precision=model.precision,
        engine=model.engine,
        facts=f"{model.max_context_tokens} tokens of context{adapters}",
    )


def _print_table(rows: list[_Row]) -> None:
    console = results()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("SERVICE", "MODEL", "VERSION", "STATE", "PRECISION", "ENGINE", ""):
        table.add_column(title, overflow="fold")
    for row in rows:
        state = Text(row.state, style=_STYLES.get(row.state, "dim"))
        table.add_row(
            *(row.service, row.name, row.version, state, row.precision, row.engine),
            Text(row.reason, style="red") if row.reason else row.facts,
        )
    console.print(table)


def _is_unreachable(error: TidegateRpcError) -> bool:
    return isinstance(error, UnavailableError) and error.unreachable
