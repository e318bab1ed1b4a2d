"""A proxyless gRPC client that opens streams to an ``xds:///`` target and keeps them open.

Usage: ``python xds_echo_client.py TARGET METHOD STREAMS``, with ``GRPC_XDS_BOOTSTRAP_CONFIG`` set.
It prints ``open`` once every stream has received its first message. After a line on standard input
it cancels the streams and prints ``closed``; another line ends it.
"""

import sys

import grpc


def main() -> None:
    """Runs the client."""
    target, method, streams = sys.argv[1:]
    with grpc.insecure_channel(target) as channel:
        call = channel.unary_stream(method)
        calls = [call(b"", wait_for_ready=True, timeout=60) for _ in range(int(streams))]
        for each in calls:
            next(each)
        print("open", flush=True)
        sys.stdin.readline()
        for each in calls:
            each.cancel()
        print("closed", flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main()
