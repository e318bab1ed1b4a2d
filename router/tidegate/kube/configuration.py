"""Which API server to call, and as whom: a kubeconfig's context, or the Pod's service account.

A caller names a kubeconfig or a context to use a kubeconfig. Without either, the Pod's service
account counts. `KUBECONFIG` decides nothing by itself: it only says in which files a context is
looked up. `lightkube` reads the files; this module adds what it lacks: errors that name the file,
the context and the fix, several files in `KUBECONFIG`, and `client.authentication.k8s.io/v1`.
"""

import json
import os
from pathlib import Path
from typing import Final

import msgspec
import yaml
from lightkube.config.kubeconfig import SERVICE_ACCOUNT, KubeConfig, SingleConfig
from lightkube.config.models import NameValue, User, UserExec
from lightkube.core.exceptions import ConfigError

from tidegate.kube.errors import KubeconfigError

__all__ = ["load"]

_EXEC_V1: Final = "client.authentication.k8s.io/v1"
_EXEC_V1BETA1: Final = "client.authentication.k8s.io/v1beta1"
# What a plugin for credentials is told; it must not ask a person.
_EXEC_INFO: Final = {
    "apiVersion": _EXEC_V1,
    "kind": "ExecCredential",
    "spec": {"interactive": False},
}


def load(kubeconfig: Path | None = None, context: str = "") -> SingleConfig:
    """Reads which API server to call, and as whom.

    Args:
        kubeconfig: A file; None looks a context up in the files of `KUBECONFIG`, else in
            ``~/.kube/config``.
        context: A context of the file; empty for its current one. With neither a file nor a
            context, the Pod's service account counts.

    Raises:
        KubeconfigError: Nothing of this exists, or it cannot be used.
    """
    if kubeconfig is not None:
        return _of_context(_read(kubeconfig), kubeconfig, context)
    if not context:
        return _of_pod()
    files = _usual_files()
    existing = [path for path in files if path.is_file()]
    if not existing:
        raise KubeconfigError(
            f"context {context}: there is no kubeconfig at {_listed(files)}; name one with"
            " --kubeconfig, or set KUBECONFIG"
        )
    configs = [(path, _read(path)) for path in existing]
    for path, config in configs:
        if context in config.contexts:
            return _of_context(config, path, context)
    known = ", ".join(sorted(name for _, config in configs for name in config.contexts))
    raise KubeconfigError(
        f"{_listed(existing)}: there is no context {context}; the contexts are {known or 'none'}"
    )


def _usual_files() -> list[Path]:
    named = [part for part in os.environ.get("KUBECONFIG", "").split(os.pathsep) if part]
    return [Path(part).expanduser() for part in named or ["~/.kube/config"]]


def _listed(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))


def _of_pod() -> SingleConfig:
    if not Path(SERVICE_ACCOUNT, "token").is_file() or "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise KubeconfigError(
            "no cluster is named, and this is not a Pod with a service account; name a cluster"
            " with --kubeconfig or --context"
        )
    try:
        config = KubeConfig.from_service_account().get()
    except (ConfigError, OSError, KeyError) as error:
        raise KubeconfigError(
            f"{SERVICE_ACCOUNT}: {error}; set automountServiceAccountToken: true for the Pod"
        ) from error
    assert config is not None  # noqa: S101  (only a default makes it None)
    return config


def _read(path: Path) -> KubeConfig:
    try:
        return KubeConfig.from_file(path)
    except ConfigError:
        raise KubeconfigError(
            f"{path}: there is no such file; name a kubeconfig with --kubeconfig"
        ) from None
    except OSError as error:
        raise KubeconfigError(f"{path}: cannot read the kubeconfig: {error}") from error
    except yaml.YAMLError as error:
        raise KubeconfigError(f"{path}: the kubeconfig is not YAML: {error}") from error
    except KeyError as error:
        raise KubeconfigError(
            f"{path}: the kubeconfig has no {error}; it needs clusters, contexts and users, each"
            " with a name"
        ) from error
    except (msgspec.ValidationError, TypeError, AttributeError) as error:
        raise KubeconfigError(f"{path}: this is not a kubeconfig: {error}") from error


def _of_context(config: KubeConfig, path: Path, context: str) -> SingleConfig:
    name = context or config.current_context
    known = ", ".join(sorted(config.contexts)) or "none"
    if not name:
        raise KubeconfigError(
            f"{path}: no current-context is set; name one of the contexts with --context ({known})"
        )
    found = config.contexts.get(name)
    if found is None:
        raise KubeconfigError(f"{path}: there is no context {name}; the contexts are {known}")
    cluster = config.clusters.get(found.cluster)
    if cluster is None:
        raise KubeconfigError(
            f"{path}: context {name} names cluster {found.cluster}, which is not in the file; its"
            f" clusters are {', '.join(sorted(config.clusters)) or 'none'}"
        )
    if not cluster.server.startswith(("https://", "http://")):
        raise KubeconfigError(
            f"{path}: the server of cluster {found.cluster} is {cluster.server!r}; it must begin"
            " with https://"
        )
    user = User()
    if found.user:
        if found.user not in config.users:
            raise KubeconfigError(
                f"{path}: context {name} names user {found.user}, who is not in the file; its"
                f" users are {', '.join(sorted(config.users)) or 'none'}"
            )
        user = _usable(config.users[found.user], found.user, path)
    return SingleConfig(name, found, cluster, user, path)


def _usable(user: User, name: str, path: Path) -> User:
    if user.auth_provider:
        raise KubeconfigError(
            f"{path}: user {name} has an auth-provider, which Kubernetes removed; use exec instead"
        )
    token_file = user.token_file
    if token_file and not Path(token_file).is_absolute():
        token_file = str(path.parent / token_file)
    return msgspec.structs.replace(
        user, token_file=token_file or None, exec=_exec(user.exec) if user.exec else None
    )


def _exec(plugin: UserExec) -> UserExec:
    """Lets `lightkube` run plugins of v1, whose answers are those of v1beta1."""
    if plugin.apiVersion != _EXEC_V1:
        return plugin
    told = NameValue("KUBERNETES_EXEC_INFO", json.dumps(_EXEC_INFO))
    return msgspec.structs.replace(
        plugin, apiVersion=_EXEC_V1BETA1, env=[*(plugin.env or ()), told]
    )
