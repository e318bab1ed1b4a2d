"""Traces for tests and the benchmark: calls of a vision server through Envoy, with chosen times."""

import random

from tidegate.trace_analysis.spans import Span, Trace

START_US = 1_764_000_000_000_000
CLASSIFY = "tidegate.vision.v1.VisionService/Classify"
STAGES = ("queue", "decode", "batch", "inference")
SUBSETS = {"1-fp32": "v1", "1-int8": "v2", "": "v1"}


def span(number, parent, service, operation, start_us, duration_us, kind="", host="", **tags):
    tags = {name.replace("__", "."): value for name, value in tags.items()}
    if kind:
        tags["span.kind"] = kind
    return Span(
        span_id=f"{number:016x}",
        parent_id=f"{parent:016x}" if parent else "",
        service=service,
        operation=operation,
        start_us=START_US + start_us,
        duration_us=duration_us,
        tags=tags,
        process=service,
        host=host,
    )


def trace(number, *spans):
    return Trace(f"{number:032x}", tuple(sorted(spans, key=lambda each: each.start_us)))


def vision_call(
    number, stages_us, *, version="1-fp32", batch=1, start_us=0, status="OK", hop_us=100
):
    """A call as `tidegate up` records it: eight spans, one in the other with a margin on each side.

    Args:
        number: The number of the trace.
        stages_us: The times of queue, decode, batch and inference.
        version: The version of the model.
        batch: The batch size.
        start_us: When the call begins.
        status: Its status.
        hop_us: What each of client, Envoy and server adds, before and after.
    """
    inside = sum(stages_us)
    model = {
        "tidegate.model": "efficientnet-lite0",
        "tidegate.model.version": version,
    }
    cluster = f"outbound|8500|{SUBSETS.get(version, version)}|vision.models.svc.cluster.local"
    code = {"rpc.response.status_code": status}
    failed = {"error": True} if status != "OK" else {}
    spans = []
    for place, (service, operation, kind, tags) in enumerate(
        (
            ("tidegate-cli", CLASSIFY, "client", code | failed),
            ("ingress", f"/{CLASSIFY}", "server", {"upstream_cluster": cluster}),
            ("ingress", f"router {cluster} egress", "client", {}),
            ("tidegate-vision", CLASSIFY, "server", model | code),
        )
    ):
        margin = hop_us * place
        duration = inside + 2 * hop_us * (4 - place)
        spans.append(
            span(place + 1, place, service, operation, start_us + margin, duration, kind, **tags)
        )
    begin = start_us + 4 * hop_us
    stage_tags = model | {"tidegate.images": 1, "tidegate.batch_size": batch}
    for place, (stage, time_us) in enumerate(zip(STAGES, stages_us, strict=True)):
        spans.append(
            span(5 + place, 4, "tidegate-vision", stage, begin, time_us, "internal", **stage_tags)
        )
        begin += time_us
    return trace(number, *spans)


def many_calls(
    count, seed=0, versions=("1-fp32", "1-int8"), slower_us=0, every_us=1000, begin_us=START_US
):
    """Calls with random times, of the two versions in turns by chance.

    Args:
        count: How many.
        seed: Of the random numbers.
        versions: The versions.
        slower_us: How much longer the second version computes.
        every_us: The time between two calls.
        begin_us: When they begin, in microseconds since 1970.
    """
    chance = random.Random(seed)
    for number in range(1, count + 1):
        which = chance.random() < 0.5
        times = [round(chance.lognormvariate(7, 0.5)) for _ in range(4)]
        times[3] += slower_us * which
        yield vision_call(
            number,
            times,
            version=versions[which],
            batch=chance.choice((1, 1, 2, 4, 7)),
            start_us=begin_us - START_US + number * every_us,
        )
