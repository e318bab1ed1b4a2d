"""A proxy before a real API server that fails as networks and servers fail.

    async with FaultyApi.running(api, folder) as faulty:
        faulty.fault = lambda call: Fault.LOSE_ANSWER if call.method == "PUT" else None
        faulty.end_watches(WatchEnd.CUT)

It answers no call by itself unless a fault says so. Its kubeconfig is the real server's but for the
address and the certificate.
"""

import asyncio
import contextlib
import datetime as dt
import enum
import ipaddress
import json
import ssl
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy_harness import free_port


class Fault(enum.Enum):
    """What happens to a call instead of an answer."""

    THROTTLE = "429 with Retry-After: 1"
    FAIL = "500"
    CONFLICT = "409"
    HANG = "the call never gets an answer, and never reaches the server"
    DROP = "the connection breaks before the call reaches the server"
    LOSE_ANSWER = "the server carries out the call, and the connection breaks"
    STALE = "a list is answered as it was before"
    GONE = "410"
    INVALID = "422"


class WatchEnd(enum.Enum):
    """How running watches end."""

    CLOSE = "as the server ends them"
    CUT = "the connection breaks in the middle of an event"
    CUT_CLEANLY = "the answer ends in the middle of an event"
    GONE = "by an event that says 410"
    SILENCE = "the connection stays open, and nothing comes any more"


@dataclass(frozen=True)
class ProxiedCall:
    """A call that came."""

    method: str
    path: str
    query: dict = field(default_factory=dict)

    @property
    def is_watch(self):
        return "watch" in self.query

    @property
    def is_list(self):
        return self.method == "GET" and not self.is_watch


_CODES = {
    Fault.THROTTLE: (429, "TooManyRequests"),
    Fault.FAIL: (500, "InternalError"),
    Fault.CONFLICT: (409, "Conflict"),
    Fault.GONE: (410, "Expired"),
    Fault.INVALID: (422, "Invalid"),
}
_KEPT_HEADERS = ("Content-Type", "Content-Encoding", "Retry-After", "Warning", "Date")


class FaultyApi:
    """The proxy.

    Attributes:
        kubeconfig: For its clients.
        fault: Called for each call; gives a `Fault` or None.
        carried_out: Called with each call that the server has carried out, before the answer
            goes on.
        delay_s: Before each call goes on; a function without arguments.
        calls: The calls that came.
        first_events: After how many events the next watch is cut; None for not at all.
    """

    def __init__(self, api, folder):
        self._api = api
        self._port = free_port()
        self._certificate = _write_certificate(folder)
        self._session = None
        self._runner = None
        self._watches = set()
        self._lists = {}
        self.kubeconfig = folder / "faulty-kubeconfig"
        self.calls = []
        self.mend()

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, api, folder):
        faulty = cls(api, folder)
        config = json.loads(api.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {
            "server": f"https://127.0.0.1:{faulty._port}",
            "certificate-authority": str(folder / "faulty.crt"),
        }
        faulty.kubeconfig.write_text(json.dumps(config))
        trusted = ssl.create_default_context(cafile=api.certificate)
        connector = aiohttp.TCPConnector(ssl=trusted, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False
        ) as faulty._session:
            await faulty.accept()
            try:
                yield faulty
            finally:
                await faulty.refuse()

    def mend(self):
        """Lets every call pass from now on."""
        self.fault = lambda call: None
        self.carried_out = lambda call: None
        self.delay_s = lambda: 0.0
        self.first_events = None

    async def accept(self):
        """Takes connections (again)."""
        application = web.Application(client_max_size=2**24)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            application, shutdown_timeout=0.1, handler_cancellation=True, access_log=None
        )
        await self._runner.setup()
        site = web.TCPSite(
            self._runner, "127.0.0.1", self._port, ssl_context=self._certificate, reuse_address=True
        )
        await site.start()

    async def refuse(self):
        """Breaks all connections, and refuses new ones."""
        self.end_watches(WatchEnd.CUT)
        await self._runner.cleanup()

    @property
    def watches(self):
        """How many watches run."""
        return len(self._watches)

    def end_watches(self, how):
        """Ends all running watches."""
        for ending in self._watches:
            if not ending.done():
                ending.set_result(how)

    async def _handle(self, request):
        call = ProxiedCall(request.method, request.path, dict(request.query))
        self.calls.append(call)
        await asyncio.sleep(self.delay_s())
        fault = self.fault(call)
        match fault:
            case Fault.HANG:
                await asyncio.Event().wait()
            case Fault.DROP:
                return _broken(request)
            case Fault.STALE:
                kept = self._lists.get((call.path, request.query_string))
                if kept is not None:
                    return web.Response(body=kept, content_type="application/json")
            case Fault.THROTTLE | Fault.FAIL | Fault.CONFLICT | Fault.GONE | Fault.INVALID:
                return _refused(*_CODES[fault])
        return await self._forward(request, call, fault)

    async def _forward(self, request, call, fault):
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() in ("authorization", "content-type", "accept", "user-agent")
        }
        try:
            answer = await self._session.request(
                call.method,
                self._api.url + request.path_qs,
                headers=headers,
                data=await request.read(),
            )
        except aiohttp.ClientError:
            return _broken(request)
        async with answer:
            self.carried_out(call)
            if fault is Fault.LOSE_ANSWER:
                return _broken(request)
            kept = {key: answer.headers[key] for key in _KEPT_HEADERS if key in answer.headers}
            if call.is_watch and answer.status == 200:
                return await self._relay_watch(request, answer, kept)
            body = await answer.read()
            if call.is_list and answer.status == 200:
                self._lists.setdefault((call.path, request.query_string), body)
            return web.Response(status=answer.status, body=body, headers=kept)

    async def _relay_watch(self, request, answer, headers):
        ending = asyncio.get_running_loop().create_future()
        self._watches.add(ending)
        relayed = web.StreamResponse(headers=headers)
        try:
            await relayed.prepare(request)
            first_events, self.first_events = self.first_events, None
            if first_events is not None:
                for _ in range(first_events):
                    await relayed.write(await answer.content.readline())
                ending.set_result(WatchEnd.CUT)
            while chunk := await _next_chunk(answer.content, ending):
                await relayed.write(chunk)
            if not ending.done():
                return relayed
            return await self._end_watch(request, relayed, ending.result())
        except (ConnectionError, aiohttp.ClientError):
            return _broken(request, relayed)
        finally:
            self._watches.discard(ending)

    async def _end_watch(self, request, relayed, how):
        part = b'{"type":"MODIFIED","object":{"metadata":{"na'
        match how:
            case WatchEnd.CUT:
                await relayed.write(part)
                return _broken(request, relayed)
            case WatchEnd.CUT_CLEANLY:
                await relayed.write(part)
            case WatchEnd.GONE:
                status = _status(410, "Expired")
                await relayed.write(
                    json.dumps({"type": "ERROR", "object": status}).encode() + b"\n"
                )
            case WatchEnd.SILENCE:
                await asyncio.Event().wait()
        await relayed.write_eof()
        return relayed


async def _next_chunk(content, ending):
    """The next chunk of a watch; empty at its end, or when it is to end."""
    reading = asyncio.ensure_future(content.readany())
    try:
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        return reading.result() if reading.done() and not ending.done() else b""
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


def _broken(request, response=None):
    if request.transport is not None:
        request.transport.abort()
    return response or web.Response()


def _status(code, reason):
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": f"the proxy of the test says {code}",
        "reason": reason,
        "code": code,
    }


def _refused(code, reason):
    headers = {"Retry-After": "1"} if code == 429 else {}
    return web.json_response(_status(code, reason), status=code, headers=headers)


def _write_certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "faulty")])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "faulty.crt").write_bytes(certificate.public_bytes(pem))
    (folder / "faulty.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "faulty.crt", folder / "faulty.key")
    return context
