"""The first program of a container: it makes what the container sees, and becomes its command.

    unshare --mount -- python -IS container_init.py VIEW COMMAND...

VIEW is JSON, which `container_view` writes. The container sees the machine's files at their places,
with its volumes mounted among them, its own `/run/secrets` and DNS server, and a root that is read
only if it asks for that. The command runs as the user of the container, without capabilities.

It runs without any packages, so that a container starts quickly, and needs Linux 5.12.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

# Of <sys/mount.h> and <linux/mount.h>.
_BIND, _RECURSIVE, _PRIVATE, _UNBINDABLE = 4096, 16384, 1 << 18, 1 << 17
_READ_ONLY, _REMOUNT = 1, 32
_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE, _ATTR_READ_ONLY = -100, 0x8000, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Makes the view, and executes the command."""
    view: dict[str, Any] = json.loads(sys.argv[1])
    _mount("none", "/", "", _RECURSIVE | _PRIVATE)
    if view["mounts"] or view["read_only"]:
        _enter_root(view)
    _bind(view["secrets"], "/run/secrets")
    _bind(view["resolver"], view["resolver_at"])
    os.chdir(view["folder"])
    words = (*view["user"], *sys.argv[2:])
    os.execvp(words[0], words)


def _enter_root(view: dict[str, Any]) -> None:
    root = Path(view["root"])
    _mount("tmpfs", root, "tmpfs", 0, "mode=755")
    # The folder that it lies in is bound into it, which must not take it along.
    _mount("none", root, "", _UNBINDABLE)
    mounts = sorted((Path(os.path.realpath(at)), source, ro) for at, source, ro in view["mounts"])
    _expand(Path("/"), root, [at.parts[1:] for at, _, _ in mounts])
    for at, source, _ in mounts:
        place = _under(root, at)
        if Path(source).is_file() and place.is_dir():
            place.rmdir()
            place.touch()
    if view["read_only"]:
        _set_read_only(root)
        # These are the container's own in Kubernetes too.
        _mount("proc", root / "proc", "proc", 0)
        _mount("tmpfs", root / "dev/shm", "tmpfs", 0, "mode=1777,size=64m")
    for at, source, is_read_only in mounts:
        _bind(source, _under(root, at))
        if is_read_only:
            _mount(source, _under(root, at), "", _BIND | _REMOUNT | _READ_ONLY)
        for kept in map(Path, view["kept"]):
            if kept.is_relative_to(at):
                # A volume lies over a folder that the command needs.
                _under(root, kept).mkdir(parents=True, exist_ok=True)
                _bind(kept, _under(root, kept), _RECURSIVE)
    os.chroot(root)


def _expand(source: Path, target: Path, points: list[tuple[str, ...]]) -> None:
    """Gives a new folder what another one has, and the missing places of mounts below it."""
    for path in source.iterdir():
        at = target / path.name
        if path.is_symlink():
            at.symlink_to(path.readlink())
        elif path.is_dir():
            at.mkdir()
            below = [point[1:] for point in points if point[0] == path.name and point[1:]]
            if all(path.joinpath(*point).exists() for point in below):
                _bind(path, at, _RECURSIVE)
            else:
                at.chmod(path.stat().st_mode & 0o7777)
                _expand(path, at, below)
        else:
            at.touch()
            _bind(path, at)
    for point in points:
        if not (target / point[0]).exists():
            target.joinpath(*point).mkdir(parents=True, exist_ok=True)


def _under(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _set_read_only(root: Path) -> None:
    attributes = (ctypes.c_uint64 * 4)(_ATTR_READ_ONLY, 0, 0, 0)
    arguments = (ctypes.c_long(_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), bytes(root))
    flags, size = ctypes.c_uint(_AT_RECURSIVE), ctypes.c_size_t(ctypes.sizeof(attributes))
    if _LIBC.syscall(*arguments, flags, ctypes.byref(attributes), size):
        _fail(f"cannot make {root} read only, which needs Linux 5.12")


def _bind(source: str | Path, target: str | Path, more: int = 0) -> None:
    _mount(source, target, "", _BIND | more)


def _mount(
    source: str | Path, target: str | Path, kind: str, flags: int, options: str = ""
) -> None:
    names = (str(source).encode(), str(target).encode(), kind.encode() or None)
    if _LIBC.mount(*names, ctypes.c_ulong(flags), options.encode() or None):
        _fail(f"cannot mount {source} at {target}")


def _fail(what: str) -> None:
    raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
