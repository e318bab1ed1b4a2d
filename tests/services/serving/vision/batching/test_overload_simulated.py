"""Ten times the load that the server can carry: accepted requests are still in time.

The model queue, its admission and its batch plan are the real ones. The workers are simulated, and
their run times vary as on a busy machine. The clock is simulated, too.
"""

import asyncio
import heapq
from collections import Counter
from itertools import count

import numpy as np
import pytest
from engine_double import EngineDouble

from tidegate.chassis.errors import ResourceExhausted
from tidegate.serving.vision.batching.classification import TopClasses
from tidegate.serving.vision.batching.inference_request import InferenceRequest, PixelImage
from tidegate.serving.vision.batching.model_queue import ModelQueue, QueueLimits
from tidegate.serving.vision.batching.planning import (
    BatchPlan,
    ServiceTimeEstimate,
    WorkerStep,
    images_to_prepare,
    next_step,
)
from tidegate.serving.vision.metrics import ModelMetrics

WORKERS = 2
PREPARE_S = 0.001
RUN_S = {1: 0.006, 2: 0.011, 4: 0.020}
SCORES = np.zeros(3, dtype=np.float32)
PIXELS = np.zeros((1, 1, 3), dtype=np.uint8)
CAPACITY = WORKERS / (PREPARE_S + RUN_S[4] / 4)  # images a second


class Simulation:
    """Clients that send at ten times the capacity for some seconds."""

    def __init__(self, *, clients, images, deadline_s, spread, limits, seed=1):
        self.random = np.random.default_rng(seed)
        engine = EngineDouble(slots=WORKERS, batch_sizes=tuple(RUN_S), shares_host=True)
        plan = BatchPlan.measured(RUN_S)
        service_time = ServiceTimeEstimate(prepare_s=PREPARE_S, run_s=RUN_S[4] / 4)
        metrics = ModelMetrics("simulated", "1", 10)
        room = QueueLimits(limits, 1 << 30)
        self.queue = ModelQueue("simulated 1", engine, None, plan, service_time, room, metrics)
        self.clients, self.images, self.deadline_s = clients, images, deadline_s
        self.spread = spread
        self.loop = asyncio.new_event_loop()
        self.outcomes = Counter()
        self.most_held = 0
        self.now_s = 0.0
        self.free = WORKERS
        self.order = count()
        self.events = []

    def at(self, seconds, what, *arguments):
        heapq.heappush(self.events, (seconds, next(self.order), what, arguments))

    def vary(self, seconds):
        return seconds * self.random.lognormal(-(self.spread**2) / 2, self.spread)

    def run(self, seconds):
        rate = 10 * CAPACITY / self.images
        for number in range(int(rate * seconds)):
            self.at(number / rate, self.arrive, number % self.clients)
        while self.events:
            self.now_s, _, what, arguments = heapq.heappop(self.events)
            what(*arguments)
            self.work()
        self.loop.close()
        return self.outcomes

    def arrive(self, client):
        request = InferenceRequest(
            [PixelImage(np.zeros((1, 1, 3), dtype=np.uint8))] * self.images,
            top_k=1,
            client=lambda: str(client),
            deadline_s=self.now_s + self.deadline_s,
            accepted_s=self.now_s,
            loop=self.loop,
        )
        try:
            self.queue.admit(request, self.now_s, WORKERS)
            self.queue.enqueue(request)
        except ResourceExhausted as refused:
            self.outcomes[refused.reason] += 1
            return
        self.most_held = max(self.most_held, self.queue.held_images)
        # At the deadline the client goes away, which cancels its request.
        self.at(request.deadline_s, self.leave, request)

    def leave(self, request):
        if request.cancel():
            self.queue.settled(request, self.now_s, succeeded=False)
            self.outcomes["late"] += 1

    def work(self):
        while self.free:
            match next_step(self.queue.state()):
                case WorkerStep.PREPARE:
                    count = images_to_prepare(self.queue.state(), WORKERS)
                    images, _ = self.queue.next_to_prepare(self.now_s, count)
                    if not images:
                        continue
                    end_s = self.now_s
                    for image in images:
                        image.timestamps.prepare_start_s = end_s
                        end_s = image.timestamps.prepare_end_s = end_s + self.vary(PREPARE_S)
                    self.at(end_s, self.prepared, images)
                case WorkerStep.RUN:
                    batch, _ = self.queue.next_batch(self.now_s)
                    if not batch:
                        continue
                    size = next(size for size in RUN_S if size >= len(batch))
                    self.at(self.now_s + self.vary(RUN_S[size]), self.ran, batch)
                case WorkerStep.NOTHING:
                    return
            self.free -= 1

    def prepared(self, images):
        self.free += 1
        for image in images:
            self.queue.prepared(image, PIXELS)

    def ran(self, batch):
        self.free += 1
        self.queue.ran(batch, self.now_s)
        self.queue.record_run(batch, (), ended_ms=0)
        for image in batch:
            if image.request.finish_image(image, SCORES, TopClasses([0], [1.0]), len(batch)):
                self.queue.settled(image.request, self.now_s, succeeded=True)
                self.outcomes["answered"] += 1


@pytest.mark.parametrize(("spread", "late"), [(0.3, 0.0), (0.8, 0.1)])
@pytest.mark.parametrize("clients", [1, 5])
@pytest.mark.parametrize(("images", "deadline_s"), [(2, 0.3), (16, 1.5)])
def test_accepted_requests_meet_their_deadlines(clients, images, deadline_s, spread, late):
    simulation = Simulation(
        clients=clients, images=images, deadline_s=deadline_s, spread=spread, limits=2000
    )
    outcomes = simulation.run(seconds=3)
    accepted = outcomes["answered"] + outcomes["late"]
    assert outcomes["late"] <= late * accepted
    assert outcomes["answered"] * images >= 0.85 * 3 * CAPACITY
    assert outcomes["DEADLINE_WOULD_PASS"] > accepted


def test_the_queue_stays_within_its_limit_and_the_server_keeps_working():
    simulation = Simulation(clients=3, images=4, deadline_s=60, spread=0.3, limits=64)
    outcomes = simulation.run(seconds=3)
    assert simulation.most_held <= 64
    assert outcomes["late"] == 0
    assert outcomes["answered"] * 4 >= 0.9 * 3 * CAPACITY
    assert outcomes["QUEUE_FULL"] > outcomes["answered"]
