"""A proxyless gRPC client in its own process: calls a target and counts the answers by server.

    proxyless_client.py TARGET

For each line on standard input it prints a report: a JSON object with the number of calls that each
server answered since the last report, and the failures.
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
