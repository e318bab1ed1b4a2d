"""Reads the three forms in which clients send images: a file, a form of files, or JSON.

- The file itself is the body, and the query holds the options.
- A multipart form holds any number of files; each other field is an option.
- A JSON document holds the files in base64, or in ``data:`` URLs, beside the options.

The query may hold options in every form; those of the body count first.

Everything stays in memory, as the limit on the body bounds it. Nothing is fetched from other URLs:
the gateway would otherwise reach addresses for strangers that they cannot reach themselves.
"""

import binascii
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from tidegate.gateway.bodies import read_body
from tidegate.gateway.errors import ApiError, shortened
from tidegate.gateway.json_documents import read_json
from tidegate.gateway.parts import parts_of

__all__ = ["FILE_TYPES", "Options", "Upload", "UploadedImage", "read_upload"]

FILE_TYPES: Final = ("image/jpeg", "image/png", "image/webp")
"""The media types of a body that is an image file."""

_OPTIONS: Final = ("model", "version", "top_k", "include_logits")
_MAX_FIELDS: Final = 8
_MAX_FIELD_BYTES: Final = 1024
_LARGEST_UINT32: Final = 2**32 - 1
_DATA_URL: Final = re.compile(r"data:[^,]{0,200}?(?P<base64>;base64)?,", re.IGNORECASE)
_OTHER_URL: Final = re.compile(r"[a-z][a-z0-9+.-]{0,20}:", re.IGNORECASE)
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Options:
    """What a client asks for, beside its images.

    Attributes:
        model: The model's name; empty means the only one.
        version: The model's version; empty lets the server or the mesh choose.
        top_k: Labels for each image; 0 means the server's default.
        include_logits: Whether to return the model's raw output.
    """

    model: str = ""
    version: str = ""
    top_k: int = 0
    include_logits: bool = False


@dataclass(frozen=True, slots=True)
class UploadedImage:
    """One image file.

    Attributes:
        param: The client's name for it, for errors.
        data: The file.
    """

    param: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Upload:
    """A request to classify images.

    Attributes:
        images: The files, at least one.
        options: The options.
    """

    images: list[UploadedImage]
    options: Options


class _ImageDocument(msgspec.Struct, forbid_unknown_fields=True):
    data: str | msgspec.UnsetType = msgspec.UNSET
    url: str | msgspec.UnsetType = msgspec.UNSET


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    images: list[_ImageDocument]
    model: str | msgspec.UnsetType = msgspec.UNSET
    version: str | msgspec.UnsetType = msgspec.UNSET
    top_k: Annotated[int, msgspec.Meta(ge=0, le=_LARGEST_UINT32)] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    include_logits: bool | msgspec.UnsetType = msgspec.UNSET


_DOCUMENTS: Final = msgspec.json.Decoder(_Document)


async def read_upload(request: Request) -> Upload:
    """Reads the body and the query of a request.

    Raises:
        ApiError: The type of the body is not one that is read, or a part of it is wrong.
        ClientGoneError: The client left before the end of the body.
    """
    settings = parts_of(request).settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind == "application/json" or kind.endswith("+json")
    if not is_json and kind != "multipart/form-data" and kind not in FILE_TYPES:
        raise _unknown_type(kind)
    body = await read_body(request, settings.max_body_bytes, settings.body_timeout_s)
    if not body:
        raise ApiError.invalid(
            None, "the body is empty; send the bytes of an image file", code="empty_body"
        )
    query = request.query_params.multi_items()
    if is_json:
        upload = _from_json(body, query, settings.max_images)
    elif kind == "multipart/form-data":
        upload = await _from_form(request, body, query, settings.max_images)
    else:
        upload = Upload([UploadedImage("body", body)], Options(**_options(query)))
    _check_count(len(upload.images), settings.max_images)
    return upload


def _unknown_type(kind: str) -> ApiError:
    known = ", ".join((*FILE_TYPES, "multipart/form-data", "application/json"))
    # What curl says of a body unless it is told something else.
    hint = "; for curl, add -H 'content-type: image/jpeg'" if "urlencoded" in kind else ""
    return ApiError.invalid(
        None,
        f"the content-type is {shortened(kind, _SHOWN) or 'missing'}; send one of {known}{hint}",
        code="unsupported_media_type",
        status=HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    )


def _check_count(count: int, most: int) -> None:
    if not 1 <= count <= most:
        raise ApiError.invalid(
            "images", f"images: has {count} images; send from 1 to {most}", code="image_count"
        )


def _options(given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Reads options that are texts: those of a query or those of a form."""
    texts: dict[str, str] = {}
    for name, text in given:
        short = shortened(name, _SHOWN)
        if name not in _OPTIONS:
            raise ApiError.invalid(
                short,
                f"{short} is not an option; there is: {', '.join(_OPTIONS)}",
                code="unknown_parameter",
            )
        if name in texts:
            raise ApiError.invalid(short, f"{short} is given twice; give it once")
        texts[name] = text
    read = {"top_k": _integer, "include_logits": _boolean}
    return {name: read[name](name, text) if name in read else text for name, text in texts.items()}


def _integer(name: str, text: str) -> int:
    # Ten digits hold every value that is allowed.
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) > _LARGEST_UINT32:
        raise ApiError.invalid(
            name,
            f"{name}: is {shortened(text, _SHOWN)!r}; it must be a whole number, as in {name}=5",
            code="invalid_value",
        )
    return int(text)


def _boolean(name: str, text: str) -> bool:
    if text.lower() not in {"true", "false", "1", "0"}:
        raise ApiError.invalid(
            name,
            f"{name}: is {shortened(text, _SHOWN)!r}; it must be true or false",
            code="invalid_value",
        )
    return text.lower() in {"true", "1"}


def _from_json(body: bytes, query: Iterable[tuple[str, str]], max_images: int) -> Upload:
    document = read_json(body, _DOCUMENTS)
    # Before base64 is decoded.
    _check_count(len(document.images), max_images)
    own = {
        name: value for name in _OPTIONS if (value := getattr(document, name)) is not msgspec.UNSET
    }
    images = [_from_text(each, f"images[{at}]") for at, each in enumerate(document.images)]
    return Upload(images, Options(**{**_options(query), **own}))


def _from_text(image: _ImageDocument, at: str) -> UploadedImage:
    texts = {
        f"{at}.{name}": text
        for name, text in (("data", image.data), ("url", image.url))
        if isinstance(text, str)
    }
    if len(texts) != 1:
        found = "both data and url" if texts else "neither data nor url"
        raise ApiError.invalid(
            at, f"{at}: has {found}; send data, the file in base64", code="invalid_value"
        )
    ((param, text),) = texts.items()
    url = _DATA_URL.match(text)
    if url is None and (_OTHER_URL.match(text) or param.endswith("url")):
        raise ApiError.invalid(
            param,
            f"{param}: is {shortened(text, _SHOWN)!r}; the gateway fetches nothing, so that nobody"
            " can make it reach addresses inside its network. Send the file itself in base64, or"
            " as a data: URL",
            code="unsupported_url",
        )
    try:
        if url is None:
            return UploadedImage(param, _decoded(text))
        content = text[url.end() :]
        # The bytes of a data: URL without ";base64" are percent-encoded (RFC 2397).
        data = _decoded(content) if url["base64"] else unquote_to_bytes(content)
        return UploadedImage(param, data)
    except ValueError as error:
        raise ApiError.invalid(
            param,
            f"{param}: is not base64 ({error}); encode the file as RFC 4648 says, without line"
            " breaks",
            code="invalid_base64",
        ) from None


def _decoded(text: str) -> bytes:
    return binascii.a2b_base64(text.encode("ascii", "replace"), strict_mode=True)


class _FormParser(MultiPartParser):
    """Starlette's parser, with every file in memory, that notices a form without an end."""

    spool_max_size = 2**31
    has_ended = False

    def on_end(self) -> None:
        self.has_ended = True


async def _from_form(
    request: Request, body: bytes, query: list[tuple[str, str]], max_images: int
) -> Upload:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield body
        if not parser.has_ended:
            # Within the parser, which then closes the files that it has opened.
            raise MultiPartException("It ends before its last boundary; send the whole form.")

    parser = _FormParser(
        request.headers,
        chunks(),
        max_files=max_images,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError.invalid(
            None,
            f"the form cannot be read: {error.message} At most {max_images} files are read.",
            code="invalid_form",
        ) from error
    try:
        images: list[UploadedImage] = []
        fields: list[tuple[str, str]] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                images.append(UploadedImage(f"images[{len(images)}]", await value.read()))
            elif name in {"file", "files", "image", "images"}:
                raise ApiError.invalid(
                    name,
                    f"{name}: has no file name, so it is a text; with curl, write"
                    f" -F '{name}=@cat.jpg'",
                )
            else:
                fields.append((name, value))
    finally:
        await form.close()
    return Upload(images, Options(**{**_options(query), **_options(fields)}))
