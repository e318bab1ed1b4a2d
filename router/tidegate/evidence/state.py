"""What is remembered of the traffic: running sums and products, of a size that does not grow."""

import msgspec

__all__ = ["EvidenceState"]


class EvidenceState(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a comparison between two windows."""
