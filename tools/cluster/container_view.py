"""What a container sees, and as whom it runs: read from its Pod, and written for `container_init`.

Pure functions, but for the check of whether a user may read the checkout.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cluster.settings import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ContainerUser", "Mount", "container_user", "kept_folders", "view_arguments"]

_INIT: Final = Path(__file__).with_name("container_init.py")
# A container reads the checkout wherever it lies, also in a folder that only root may enter.
_READS_ALL: Final = "dac_read_search"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A volume in a container.

    Attributes:
        volume: The name of the volume.
        path: Where it is mounted.
        sub_path: The folder or file of the volume that is mounted; empty for all of it.
        is_read_only: Whether the container may only read it.
    """

    volume: str
    path: Path
    sub_path: str = ""
    is_read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerUser:
    """As whom a container runs.

    Attributes:
        uid: Its user; `None` for the cluster's own, root.
        gid: Its group.
        groups: Its further groups.
        may_gain: Whether a program in it may gain privileges, by `setuid` for example.
        drops_all: Whether it gives up all capabilities.
    """

    uid: int | None = None
    gid: int = 0
    groups: tuple[int, ...] = ()
    may_gain: bool = True
    drops_all: bool = False

    def command(self, *, reads_all: bool) -> tuple[str, ...]:
        """The words that run a command as the user.

        Args:
            reads_all: Whether it may read every file of the machine, whatever its permissions say.
        """
        words = ["setpriv"]
        if self.uid is not None:
            words += ["--reuid", str(self.uid), "--regid", str(self.gid)]
            words += (
                ["--groups", ",".join(map(str, self.groups))] if self.groups else ["--clear-groups"]
            )
        if not self.may_gain:
            words.append("--no-new-privs")
        if self.uid is not None or self.drops_all:
            kept = f"-all,+{_READS_ALL}" if reads_all else "-all"
            words += ["--inh-caps", kept, "--ambient-caps", kept]
            if self.drops_all:
                words += ["--bounding-set", kept]
        return tuple(words) if len(words) > 1 else ()


def container_user(pod: Mapping[str, Any], container: Mapping[str, Any]) -> ContainerUser:
    """Reads the security context of a container, and that of its Pod.

    Args:
        pod: The spec of the Pod.
        container: The container.
    """
    outer, own = pod.get("securityContext") or {}, container.get("securityContext") or {}
    uid = own.get("runAsUser", outer.get("runAsUser"))
    groups = {
        *outer.get("supplementalGroups", ()),
        *([outer["fsGroup"]] if "fsGroup" in outer else ()),
    }
    return ContainerUser(
        uid=uid,
        gid=own.get("runAsGroup", outer.get("runAsGroup", 0)),
        groups=tuple(sorted(groups)),
        may_gain=own.get("allowPrivilegeEscalation", True),
        drops_all="ALL" in own.get("capabilities", {}).get("drop", ()),
    )


def view_arguments(
    *,
    mounts: Sequence[tuple[Path, Path, bool]],
    is_read_only: bool,
    user: ContainerUser,
    folder: Path,
    root: Path,
    secrets: Path,
    resolver: Path,
) -> list[str]:
    """The words before a command that runs it in the container's view.

    Args:
        mounts: Where something is mounted, what, and whether it is read only.
        is_read_only: Whether the container cannot write elsewhere.
        user: As whom the command runs.
        folder: Its working directory.
        root: An empty folder, which becomes the root in the container's own mount namespace.
        secrets: The folder that it sees as `/run/secrets`.
        resolver: The file that it sees as `/etc/resolv.conf`.
    """
    kept = kept_folders()
    view = {
        "mounts": [(str(at), str(source), ro) for at, source, ro in mounts],
        "read_only": is_read_only,
        "user": user.command(reads_all=not all(_anybody_reads(each) for each in kept)),
        "folder": str(folder),
        "root": str(root),
        "secrets": str(secrets),
        "resolver": str(resolver),
        "resolver_at": os.path.realpath("/etc/resolv.conf"),
        "kept": [str(each) for each in kept],
    }
    return [sys.executable, "-IS", str(_INIT), json.dumps(view)]


def kept_folders() -> tuple[Path, ...]:
    """The folders that every container needs: the checkout, and Python with its packages."""
    found = {ROOT, Path(sys.prefix), Path(sys.base_prefix)}
    return tuple(sorted(found))


def _anybody_reads(path: Path) -> bool:
    return all(each.stat().st_mode & 0o005 == 0o005 for each in (path, *path.parents))
