"""The resources that Tidegate reads and writes, as frozen structs.

A struct has the fields that Tidegate reads. Decoding skips all others, `managedFields` first:
they are almost half of a Rollout's bytes. Objects that are edited value for value, such as
VirtualServices, decode to a `Manifest`, whose `spec` and `status` keep every field.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Generic, TypeVar

import msgspec

__all__ = [
    "DESTINATION_RULES",
    "ENDPOINT_SLICES",
    "ENVOY_FILTERS",
    "EVENTS",
    "GATEWAYS",
    "LEASES",
    "NAMESPACES",
    "PODS",
    "ROLLOUTS",
    "SERVICES",
    "VIRTUAL_SERVICES",
    "Condition",
    "Endpoint",
    "EndpointConditions",
    "EndpointPort",
    "EndpointSlice",
    "KubeObject",
    "Lease",
    "LeaseSpec",
    "Manifest",
    "ObjectMeta",
    "ObjectReference",
    "OwnerReference",
    "Pod",
    "PodSpec",
    "PodStatus",
    "Resource",
    "Service",
    "ServicePort",
    "ServiceSpec",
    "key_of",
]


def key_of(name: str, namespace: str = "") -> str:
    """The key of an object: ``namespace/name``, or ``name`` outside namespaces."""
    return f"{namespace}/{name}" if namespace else name


class OwnerReference(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An owner of an object, with which Kubernetes deletes the object.

    Attributes:
        api_version: The owner's, such as ``apps/v1``.
        kind: The owner's.
        name: The owner's.
        uid: The owner's.
        controller: Whether the owner is the controller of the object.
    """

    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """What every object has.

    Attributes:
        name: Its name.
        namespace: Its namespace; empty outside namespaces.
        uid: Its identity: an object of the same name that is made later has another.
        resource_version: Its version. It grows with each write.
        generation: How often its spec changed; 0 for resources that do not count.
        labels: Its labels.
        annotations: Its annotations.
        creation_timestamp: When the server stored it first.
        deletion_timestamp: When somebody asked to delete it; None if nobody did.
        finalizers: Who must agree before it goes.
        owner_references: Its owners.
    """

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()


class KubeObject(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An object with metadata.

    Attributes:
        metadata: Its metadata.
    """

    metadata: ObjectMeta

    @property
    def key(self) -> str:
        """``namespace/name``, or ``name`` outside namespaces."""
        return key_of(self.metadata.name, self.metadata.namespace)

    @property
    def version(self) -> int:
        """The resource version as a number: a later write of any object has a greater one."""
        return int(self.metadata.resource_version or 0)


class Manifest(KubeObject, frozen=True, kw_only=True):
    """An object whose spec and status are kept whole.

    Attributes:
        api_version: Such as ``networking.istio.io/v1``; empty in lists of built-in resources.
        kind: Such as ``VirtualService``; empty in lists of built-in resources.
        spec: The spec as JSON values.
        status: The status as JSON values.
    """

    api_version: str = ""
    kind: str = ""
    spec: dict[str, Any] = {}
    status: dict[str, Any] = {}


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A condition of a built-in object.

    Attributes:
        type: Such as ``Ready``.
        status: ``True``, ``False`` or ``Unknown``.
    """

    type: str
    status: str


class PodSpec(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A Pod's spec.

    Attributes:
        node_name: Where it runs; empty before it is scheduled.
        service_account_name: As whom it runs.
    """

    node_name: str = ""
    service_account_name: str = ""


class PodStatus(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A Pod's status.

    Attributes:
        phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``.
        pod_ip: Its address; empty before it has one.
        conditions: Its conditions.
    """

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: tuple[Condition, ...] = ()


class Pod(KubeObject, frozen=True, kw_only=True):
    """A Pod.

    Attributes:
        spec: Its spec.
        status: Its status.
    """

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_ready(self) -> bool:
        """Whether it is ready for requests and stays so."""
        ready = any(
            each.type == "Ready" and each.status == "True" for each in self.status.conditions
        )
        return ready and self.metadata.deletion_timestamp is None


class ServicePort(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A port of a Service.

    Attributes:
        name: Its name; may be empty if it is the only one.
        port: The number that clients call.
        target_port: The number or the name of the Pods' port.
        protocol: ``TCP``, ``UDP`` or ``SCTP``.
        app_protocol: Such as ``kubernetes.io/h2c`` or ``grpc``; empty if the Service does not say.
    """

    name: str = ""
    port: int
    target_port: int | str = 0
    protocol: str = "TCP"
    app_protocol: str = ""


class ServiceSpec(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A Service's spec.

    Attributes:
        type: ``ClusterIP``, ``NodePort``, ``LoadBalancer`` or ``ExternalName``.
        cluster_ip: Its address; ``None`` (the text) for headless Services.
        external_name: The name that an ``ExternalName`` stands for.
        selector: The labels of its Pods.
        ports: Its ports.
    """

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(default="", name="clusterIP")
    external_name: str = ""
    selector: dict[str, str] = {}
    ports: tuple[ServicePort, ...] = ()


class Service(KubeObject, frozen=True, kw_only=True):
    """A Service.

    Attributes:
        spec: Its spec.
    """

    spec: ServiceSpec = ServiceSpec()


class ObjectReference(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Names another object.

    Attributes:
        kind: Its kind.
        namespace: Its namespace.
        name: Its name.
        uid: Its identity.
    """

    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""


class EndpointConditions(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an endpoint takes requests.

    Attributes:
        ready: Whether it should get new requests; None counts as true.
        serving: Whether it can answer, even while it terminates; None counts as `ready`.
        terminating: Whether its Pod is being deleted.
    """

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Endpoint(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """One endpoint of a Service.

    Attributes:
        addresses: Its addresses; all mean the same endpoint.
        conditions: Whether it takes requests.
        target_ref: Its Pod; None if none is behind it.
        node_name: Where it runs.
    """

    addresses: tuple[str, ...]
    conditions: EndpointConditions = EndpointConditions()
    target_ref: ObjectReference | None = None
    node_name: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether it should get new requests."""
        return self.conditions.ready is not False


class EndpointPort(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A port of the endpoints in a slice.

    Attributes:
        name: The name of the Service's port.
        port: The endpoints' number; None means any port.
        protocol: ``TCP``, ``UDP`` or ``SCTP``.
    """

    name: str = ""
    port: int | None = None
    protocol: str = "TCP"


class EndpointSlice(KubeObject, frozen=True, kw_only=True):
    """Some of a Service's endpoints. The label ``kubernetes.io/service-name`` names the Service.

    Attributes:
        address_type: ``IPv4``, ``IPv6`` or ``FQDN``.
        endpoints_or_null: The endpoints; None for none. Read `endpoints`.
        ports_or_null: The ports; None for none. Read `ports`.
    """

    address_type: str = "IPv4"
    endpoints_or_null: tuple[Endpoint, ...] | None = msgspec.field(default=None, name="endpoints")
    ports_or_null: tuple[EndpointPort, ...] | None = msgspec.field(default=None, name="ports")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints."""
        return self.endpoints_or_null or ()

    @property
    def ports(self) -> tuple[EndpointPort, ...]:
        """The ports of all of them."""
        return self.ports_or_null or ()

    @property
    def service_key(self) -> str:
        """The key of the Service; empty if the slice belongs to none."""
        name = self.metadata.labels.get("kubernetes.io/service-name", "")
        return key_of(name, self.metadata.namespace) if name else ""


class LeaseSpec(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Who holds a lease.

    Attributes:
        holder_identity: The holder; empty if nobody holds it.
        lease_duration_seconds: For how long after a renewal.
        acquire_time: When the holder took it.
        renew_time: When the holder renewed it last.
        lease_transitions: How often it changed hands.
    """

    holder_identity: str = ""
    lease_duration_seconds: int = 0
    acquire_time: datetime | None = None
    renew_time: datetime | None = None
    lease_transitions: int = 0


class Lease(KubeObject, frozen=True, kw_only=True):
    """A Lease.

    Attributes:
        spec: Who holds it.
    """

    spec: LeaseSpec = LeaseSpec()


T = TypeVar("T", bound=KubeObject)


@dataclass(frozen=True)
class Resource(Generic[T]):
    """A resource type: where its objects are, and what they decode to.

    Attributes:
        group: Its API group; empty for the core group.
        version: Its API version.
        plural: Its name in URLs.
        kind: Its kind.
        object_type: What objects decode to.
        namespaced: Whether its objects are in namespaces.
    """

    group: str
    version: str
    plural: str
    kind: str
    object_type: type[T] = field(repr=False)
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """As in objects: ``v1`` or ``group/version``."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of an object or, without a name, of a collection.

        Args:
            namespace: A namespace; empty for all, or for resources outside namespaces.
            name: The object's name.
            subresource: Such as ``status``.
        """
        root = f"/apis/{self.group}" if self.group else "/api"
        within = f"namespaces/{namespace}" if namespace and self.namespaced else ""
        parts = (root, self.version, within, self.plural, name, subresource)
        return "/".join(filter(None, parts))

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """An object's body with the API version and the kind of this resource."""
        return {**body, "apiVersion": self.api_version, "kind": self.kind}


ROLLOUTS: Final = Resource("tidegate.dev", "v1alpha1", "rollouts", "Rollout", Manifest)
VIRTUAL_SERVICES: Final = Resource(
    "networking.istio.io", "v1", "virtualservices", "VirtualService", Manifest
)
DESTINATION_RULES: Final = Resource(
    "networking.istio.io", "v1", "destinationrules", "DestinationRule", Manifest
)
ENVOY_FILTERS: Final = Resource(
    "networking.istio.io", "v1alpha3", "envoyfilters", "EnvoyFilter", Manifest
)
GATEWAYS: Final = Resource("networking.istio.io", "v1", "gateways", "Gateway", Manifest)
SERVICES: Final = Resource("", "v1", "services", "Service", Service)
ENDPOINT_SLICES: Final = Resource(
    "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice", EndpointSlice
)
PODS: Final = Resource("", "v1", "pods", "Pod", Pod)
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease", Lease)
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event", Manifest)
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", Manifest, namespaced=False)
