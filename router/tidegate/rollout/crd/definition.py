"""The CustomResourceDefinition of rollouts, `rollouts.tidegate.dev`.

Versions after v1alpha1 may only add fields: a conversion would need a webhook with certificates.
"""

from typing import Any, Final

from tidegate.rollout.crd.field_rules import FIELD_RULES
from tidegate.rollout.crd.spec_schema import spec_schema
from tidegate.rollout.crd.status_schema import status_schema
from tidegate.rollout.spec.model import API_VERSION, KIND, Rollout

__all__ = ["CATEGORY", "GROUP", "PLURAL", "VERSION", "rollout_definition"]

GROUP: Final = API_VERSION.partition("/")[0]
VERSION: Final = API_VERSION.partition("/")[2]
PLURAL: Final = "rollouts"
CATEGORY: Final = "tidegate"

_COLUMNS: Final = (
    ("Host", "string", ".spec.host", "The Istio host whose traffic is divided.", 0),
    ("Candidate", "string", ".spec.candidate", "The subset that is new.", 1),
    ("Phase", "string", ".status.phase", "Where the rollout is.", 0),
    ("Step", "string", ".status.step", "The current step and how many there are.", 0),
    ("Weight", "number", ".status.weight", "The candidate's share, in percent.", 0),
    ("Verdict", "string", ".status.verdict", "What the evidence says.", 0),
    ("Age", "date", ".metadata.creationTimestamp", "When the rollout was created.", 0),
    ("Message", "string", ".status.message", "Why the rollout is where it is.", 1),
)
_SELECTABLE: Final = (".spec.host", ".spec.baseline", ".spec.candidate", ".status.phase")


def rollout_definition() -> dict[str, Any]:
    """Returns the definition as the API server takes it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": CATEGORY},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "plural": PLURAL,
                "singular": KIND.lower(),
                "kind": KIND,
                "listKind": f"{KIND}List",
                # Argo's rollouts have the short name `ro`.
                "shortNames": ["tgro"],
                "categories": [CATEGORY],
            },
            "versions": [_version()],
        },
    }


def _version() -> dict[str, Any]:
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            {"name": name, "type": kind, "jsonPath": path, "description": words}
            | ({"priority": priority} if priority else {})
            for name, kind, path, words, priority in _COLUMNS
        ],
        "selectableFields": [{"jsonPath": path} for path in _SELECTABLE],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": (
                    "A rollout brings traffic from one version of a host to another, and back if"
                    " the evidence says so."
                ),
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string", "enum": [API_VERSION]},
                    "kind": {"type": "string", "enum": [KIND]},
                    "metadata": {"type": "object"},
                    "spec": spec_schema(),
                    "status": status_schema(),
                },
                "x-kubernetes-validations": FIELD_RULES[Rollout],
            }
        },
    }
