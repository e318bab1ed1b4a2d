"""A proxyless gRPC client in a process of its own: calls, counts who answered, reports each second.

    proxyless_client.py TARGET

A line on standard input asks for a report: a JSON object on standard output with how many calls
each backend answered since the last one, and the failures.
"""

import json
import sys
import threading
from collections import Counter

import grpc


def main():
    answers = Counter()
    with grpc.insecure_channel(sys.argv[1]) as channel:
        call = channel.unary_unary("/test.Echo/Who")
        grpc.channel_ready_future(channel).result(timeout=20)
        lock, ended = threading.Lock(), threading.Event()

        def keep_calling():
            while not ended.is_set():
                try:
                    who = call(b"", timeout=10).decode()
                except grpc.RpcError as error:
                    who = f"failed: {error.code().name} {error.details()}"
                with lock:
                    answers[who] += 1

        threads = [threading.Thread(target=keep_calling) for _ in range(2)]
        for thread in threads:
            thread.start()
        print("ready", flush=True)
        for _ in sys.stdin:
            with lock:
                print(json.dumps(answers), flush=True)
                answers.clear()
        ended.set()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main()
