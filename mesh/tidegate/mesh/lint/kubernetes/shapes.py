"""What objects of Kubernetes share: metadata, selectors, and how their YAML becomes a model.

Models hold the fields that rules look at and ignore all others. `kubernetes-validate` or an API
server find a field that no object has.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

__all__ = [
    "IntOrString",
    "KubernetesMetadata",
    "KubernetesModel",
    "KubernetesObject",
    "LabelExpression",
    "LabelSelector",
    "share_of",
]

IntOrString = int | str
"""A number, or a text such as the name of a port or ``25%``."""


class KubernetesModel(BaseModel):
    """A part of an object. Values are read strictly: ``"2"`` is no number."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, strict=True, extra="ignore", alias_generator=to_camel
    )


class KubernetesMetadata(KubernetesModel):
    """The metadata of an object or of a Pod template."""

    name: str = ""
    namespace: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class KubernetesObject(KubernetesModel):
    """An object."""

    api_version: str
    kind: str
    metadata: KubernetesMetadata = Field(default_factory=KubernetesMetadata)

    @property
    def namespace(self) -> str:
        """Its namespace; ``default`` where it names none."""
        return self.metadata.namespace or "default"


class LabelExpression(KubernetesModel):
    """One condition on a label."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet the condition."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels


class LabelSelector(KubernetesModel):
    """Selects objects by their labels; an empty selector selects every object."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[LabelExpression, ...] = ()

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether labels meet all conditions."""
        return self.match_labels.items() <= labels.items() and all(
            each.holds(labels) for each in self.match_expressions
        )

    @property
    def is_empty(self) -> bool:
        """Whether it selects every object."""
        return not self.match_labels and not self.match_expressions

    def __str__(self) -> str:
        labels = [f"{key}={value}" for key, value in self.match_labels.items()]
        labels += [
            " ".join((each.key, each.operator, *each.values)) for each in self.match_expressions
        ]
        return ", ".join(labels) or "every Pod"


def share_of(value: IntOrString, whole: int, *, round_up: bool) -> int | None:
    """Returns a number, or a percentage of the whole; None where the text is no percentage.

    Args:
        value: The number or percentage.
        whole: What a percentage is of.
        round_up: Whether a part counts as one.
    """
    if isinstance(value, int):
        return value
    digits = value.removesuffix("%")
    if digits == value or not digits.isdecimal():
        return None
    hundredths = int(digits) * whole
    return -(-hundredths // 100) if round_up else hundredths // 100
