"""``tidegate model``: builds models from published weights, and lists and verifies them.

    tidegate model build efficientnet-lite0 --precision int8
    tidegate model build smollm2
    tidegate model list
    tidegate model verify
    tidegate model samples samples/

The first build of a model takes from seconds to two minutes. A second build finds that every
checksum is right, says so and does nothing. The fp32 build of a classifier becomes its default
version unless one is set, because the other precisions are measured against it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tidegate.errors import TidegateError
from tidegate.serving.build import efficientnet_lite0, smollm2
from tidegate.serving.build.assembly import assemble, make_default, sound_entry
from tidegate.serving.build.errors import BuildError
from tidegate.serving.build.photographs import SAMPLES, write_samples
from tidegate.serving.repository import (
    Entry,
    EntryNotFoundError,
    Metadata,
    Precision,
    Repository,
    RepositoryError,
)
from tidegate.serving.repository.versions import is_identifier

__all__ = ["app"]

app = typer.Typer(help="Build, list and verify models.", no_args_is_help=True)

_output = Console(highlight=False, soft_wrap=True)
_progress = Console(stderr=True, highlight=False, soft_wrap=True)


class BuildableModel(StrEnum):
    """The models whose weights are published as packages."""

    EFFICIENTNET_LITE0 = efficientnet_lite0.NAME
    SMOLLM2 = smollm2.NAME


class BuildablePrecision(StrEnum):
    """The precisions of a classifier."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


RepositoryOption = Annotated[
    Path, typer.Option("--repository", help="The folder of models.", show_default=True)
]
_DEFAULT_REPOSITORY = Path("models")
_EXAMPLE = "tidegate model build efficientnet-lite0"


@app.command()
def build(
    model: Annotated[BuildableModel, typer.Argument(help="Which model.")],
    precision: Annotated[
        BuildablePrecision | None,
        typer.Option(help="Precision of a classifier; fp32 if not given.", show_default=False),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(
            help="Its version; 1-PRECISION for a classifier, 1 otherwise, if not given.",
            show_default=False,
        ),
    ] = None,
    repository: RepositoryOption = _DEFAULT_REPOSITORY,
    force: Annotated[
        bool, typer.Option("--force", help="Build the model again even if it exists.")
    ] = False,
) -> None:
    """Build a model from published weights into the repository."""
    with _errors_reported():
        match model:
            case BuildableModel.EFFICIENTNET_LITE0:
                _build_classifier(repository, Precision(precision or "fp32"), version, force=force)
            case BuildableModel.SMOLLM2:
                if precision is not None:
                    raise BuildError(f"{model} has one precision, bf16; leave out --precision")
                _build_language_model(repository, version, force=force)


@app.command("list")
def list_models(repository: RepositoryOption = _DEFAULT_REPOSITORY) -> None:
    """List the models of the repository; * marks the default version."""
    with _errors_reported():
        models = Repository(repository)
        table = Table(box=None)
        for heading in ("model", "version", "kind", "precision", "size"):
            table.add_column(heading, no_wrap=True)
        for location in models.locations():
            star = "*" if models.default_version(location.name) == location.version else ""
            try:
                entry = Entry.open(location.path, verify=False)
            except RepositoryError as error:
                table.add_row(location.name, location.version + star, "[red]unsound[/]", "", "")
                _progress.print(f"[red]error:[/] {escape(str(error))}")
            else:
                table.add_row(
                    location.name,
                    location.version + star,
                    entry.kind,
                    entry.metadata.precision.compute,
                    f"{_size_bytes(entry.path) / 1e6:.1f} MB",
                )
        if table.row_count == 0:
            raise EntryNotFoundError(f"no models in {repository}; build one: {_EXAMPLE}")
        _output.print(table)


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="One model; all by default.")] = None,
    repository: RepositoryOption = _DEFAULT_REPOSITORY,
) -> None:
    """Check every file of the repository against its recorded checksum."""
    with _errors_reported():
        locations = [
            location
            for location in Repository(repository).locations()
            if name in (None, location.name)
        ]
        if not locations:
            sought = "models" if name is None else f"model {name!r}"
            raise EntryNotFoundError(f"no {sought} in {repository}; build one: {_EXAMPLE}")
        unsound = 0
        for location in locations:
            try:
                entry = Entry.open(location.path)
            except RepositoryError as error:
                unsound += 1
                _output.print(f"[red]unsound[/] {escape(str(error))}")
            else:
                _output.print(
                    f"[green]sound[/]   {entry.name} {entry.version}: "
                    f"{len(entry.metadata.files)} files with checksums"
                )
        if unsound:
            raise typer.Exit(1)


@app.command()
def samples(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path("samples"),
) -> None:
    """Write a few real photographs as JPEG files, to classify."""
    with _errors_reported():
        for path, sample in zip(write_samples(folder), SAMPLES, strict=True):
            _output.print(f"{path}: {sample.shows}")


def _build_classifier(
    root: Path, precision: Precision, version: str | None, *, force: bool
) -> None:
    chosen = version or efficientnet_lite0.default_version(precision)
    entry = _build(
        root,
        efficientnet_lite0.NAME,
        chosen,
        lambda folder, say: efficientnet_lite0.write_image_classifier(folder, precision, say),
        recipe=efficientnet_lite0.RECIPE,
        force=force,
    )
    if entry.metadata.precision.compute is not precision:
        raise BuildError(
            f"{entry.path} exists and computes in {entry.metadata.precision.compute}, not "
            f"{precision}; choose another --version, or replace it with --force"
        )
    if precision is Precision.FP32:
        make_default(root, efficientnet_lite0.NAME, chosen)


def _build_language_model(root: Path, version: str | None, *, force: bool) -> None:
    def write(folder: Path, say: Callable[[str], None]) -> Metadata:
        say("unpacking the weights and the tokenizer")
        return smollm2.write_language_model(folder)

    chosen = version or smollm2.DEFAULT_VERSION
    _build(root, smollm2.NAME, chosen, write, recipe=smollm2.RECIPE, force=force)


def _build(
    root: Path,
    name: str,
    version: str,
    write: Callable[[Path, Callable[[str], None]], Metadata],
    *,
    recipe: int,
    force: bool,
) -> Entry:
    if not is_identifier(version):
        raise BuildError(
            f"{version!r} cannot be a version; use 1-63 letters, digits, '.', '_' or '-'"
        )
    if not force and (entry := sound_entry(root / name / version)) is not None:
        source = entry.metadata.source
        if source is None or source.recipe >= recipe:
            _output.print(
                f"{name} {version} is already built and its checksums are right: {entry.path}"
            )
            return entry
        _output.print(f"{name} {version} was built by an older recipe, and is built again")
    with _progress.status(f"{name} {version}: loading libraries") as status:

        def say(step: str) -> None:
            status.update(f"{name} {version}: {step}")

        entry = assemble(root, name, version, lambda folder: write(folder, say))
    _output.print(
        f"built {name} {version} ({entry.metadata.precision.compute}, "
        f"{_size_bytes(entry.path) / 1e6:.1f} MB): {entry.path}"
    )
    return entry


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _errors_reported() -> Iterator[None]:
    """Turns an error of Tidegate or of the file system into one line and exit status 1."""
    try:
        yield
    except (TidegateError, OSError) as error:
        _progress.print(f"[red]error:[/] {escape(str(error))}")
        raise typer.Exit(1) from error
