"""``tidegate shift`` and ``tidegate mesh reset`` on a cluster: they write at its API server.

Istio acknowledges nothing, so a command returns once the API server has the change.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from tidegate.cli.console import exit_on_interrupt
from tidegate.cli.rollout.client import Home
from tidegate.kube.client import KubeClient
from tidegate.mesh.control.api.request_reading import read_shift
from tidegate.mesh.v1 import mesh_pb2
from tidegate.traffic.cluster.shifting import ObjectChange, reset_shifts, shift_traffic

__all__ = ["reset_on_cluster", "shift_on_cluster"]

# A person waits for each call.
_DEADLINE_S: Final = 5.0
_INTERRUPTED: Final = "what the API server has stays"


def shift_on_cluster(
    request: mesh_pb2.ShiftRequest,
    kubeconfig: Path | None,
    context: str,
    namespace: str,
    *,
    as_json: bool,
) -> None:
    """Shifts the traffic of a host, and shows what changed.

    Args:
        request: The shift.
        kubeconfig: A kubeconfig; None for the usual ones.
        context: A context of it; empty for its current one.
        namespace: The host's namespace; empty for the context's.
        as_json: Whether to print JSON.

    Raises:
        KubeconfigError: The kubeconfig or its credentials cannot be used.
        TrafficError: The shift cannot be made.
    """
    change = read_shift(request)
    cluster = Home(context=context, kubeconfig=kubeconfig).options

    async def shift(client: KubeClient) -> Sequence[ObjectChange]:
        return await shift_traffic(
            *(client, client.namespace, change),
            force=request.force,
            dry_run=request.dry_run,
            cluster=cluster,
        )

    changes = _run(shift, kubeconfig, context, namespace)
    _show(changes, "shifted", "it was in effect already", request.dry_run, as_json=as_json)


def reset_on_cluster(
    kubeconfig: Path | None,
    context: str,
    namespace: str,
    *,
    force: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Undoes every shift of a namespace, and shows what changed.

    Args:
        kubeconfig: A kubeconfig; None for the usual ones.
        context: A context of it; empty for its current one.
        namespace: The namespace; empty for the context's.
        force: Whether to change traffic of rollouts, and routes that were changed since.
        dry_run: Whether to change nothing.
        as_json: Whether to print JSON.

    Raises:
        KubeconfigError: The kubeconfig or its credentials cannot be used.
        TrafficError: The shifts cannot be undone.
    """
    cluster = Home(context=context, kubeconfig=kubeconfig).options

    async def reset(client: KubeClient) -> Sequence[ObjectChange]:
        return await reset_shifts(
            *(client, client.namespace), force=force, dry_run=dry_run, cluster=cluster
        )

    changes = _run(reset, kubeconfig, context, namespace)
    _show(changes, "reset", "nothing is shifted", dry_run, as_json=as_json)


def _run(
    call: Callable[[KubeClient], Awaitable[Sequence[ObjectChange]]],
    kubeconfig: Path | None,
    context: str,
    namespace: str,
) -> Sequence[ObjectChange]:
    async def calling() -> Sequence[ObjectChange]:
        async with KubeClient.opened(
            kubeconfig=kubeconfig,
            context=context,
            namespace=namespace,
            user_agent="tidegate-cli",
            deadline_s=_DEADLINE_S,
        ) as client:
            return await call(client)

    with exit_on_interrupt(_INTERRUPTED):
        return asyncio.run(calling())


def _show(
    changes: Sequence[ObjectChange], done: str, nothing: str, dry_run: bool, *, as_json: bool
) -> None:
    for each in changes:
        if as_json:
            line = json.dumps({"object": each.name, "diff": each.diff}, ensure_ascii=False)
            sys.stdout.write(f"{line}\n")
        elif dry_run:
            sys.stdout.write(each.diff)
        else:
            sys.stdout.write(f"{done} {each.name}\n")
    if not changes and not as_json:
        sys.stdout.write(f"{'nothing would change' if dry_run else nothing}\n")
