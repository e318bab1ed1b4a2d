"""An HTTP/1.1 client that sends exactly the bytes that a test gives it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

_PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class RawResponse:
    """A response.

    Attributes:
        status: Its status.
        headers: Its headers, with names in lower case; the last one of each name.
        body: Its body.
    """

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self):
        """The error in OpenAI's form; it has exactly the four keys."""
        error = json.loads(self.body)["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert self.headers["content-type"] == "application/json"
        return error


class RawConnection:
    """A connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *parts: bytes | str) -> None:
        """Sends bytes; text has its line ends made CRLF."""
        for part in parts:
            if self.writer.is_closing():
                raise ConnectionResetError("the server has closed the connection")
            self.writer.write(
                part.replace("\n", "\r\n").encode() if isinstance(part, str) else part
            )
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Reads a status line and headers."""
        async with asyncio.timeout(_PATIENCE_S):
            block = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = block.decode().split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), headers

    async def response(self, *, has_body: bool = True) -> RawResponse:
        """Reads a response; the body by its length, in chunks, or to the end."""
        status, headers = await self.head()
        async with asyncio.timeout(_PATIENCE_S):
            if not has_body or status in {100, 204, 304}:
                body = b""
            elif "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            elif headers.get("transfer-encoding") == "chunked":
                body = b"".join([each async for each in self.chunks()])
            else:
                body = await self.reader.read()
        return RawResponse(status, headers, body)

    async def chunks(self) -> AsyncIterator[bytes]:
        """Reads the chunks of a body, including the last, empty one, which it leaves out."""
        while size := int((await self.reader.readline()).strip(), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readline() == b"\r\n"

    async def is_closed(self, within_s: float = _PATIENCE_S) -> bool:
        """Waits for the end of the connection; tells whether nothing came before it."""
        try:
            async with asyncio.timeout(within_s):
                return await self.reader.read(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Closes the connection."""
        self.writer.close()
        with suppress(ConnectionError, OSError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(port: int, **options: object) -> AsyncIterator[RawConnection]:
    """Connects to a port of this machine; `options` are those of `asyncio.open_connection`."""
    connection = RawConnection(*await asyncio.open_connection("127.0.0.1", port, **options))
    try:
        yield connection
    finally:
        await connection.close()


async def ask(port: int, *parts: bytes | str, has_body: bool = True) -> RawResponse:
    """Sends bytes on a connection of their own, and reads one response."""
    async with connected(port) as connection:
        await connection.send(*parts)
        return await connection.response(has_body=has_body)
