"""What contradicts itself in a message whose fields are each right: Istio's own validation rules.

They follow istiod's ``pkg/config/validation``, so that what passes here passes there; a few are
stricter, where Istio takes what can never have an effect.
"""

from collections.abc import Iterator

from tidegate.istio.rules.places import PLACE_RULES
from tidegate.istio.rules.policies import POLICY_RULES
from tidegate.istio.rules.routes import GRPC_STATUSES, ROUTE_RULES
from tidegate.istio.rules.violation import Violation
from tidegate.istio.shapes import Message

__all__ = ["GRPC_STATUSES", "Violation", "violations"]

_RULES = {**ROUTE_RULES, **POLICY_RULES, **PLACE_RULES}


def violations(message: Message) -> Iterator[Violation]:
    """What contradicts itself in a message, apart from the messages inside it."""
    rule = _RULES.get(type(message))
    return rule(message) if rule is not None else iter(())
