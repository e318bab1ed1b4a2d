"""The options with which the gRPC server is built."""

from tidegate.chassis import ChassisSettings
from tidegate.chassis.server_builder import channel_options


def test_options_carry_the_units_that_grpc_wants():
    options = dict(
        channel_options(
            ChassisSettings(
                max_message_bytes=5000,
                keepalive_time_s=1.5,
                min_ping_interval_s=0.25,
                max_connection_age_s=60,
            )
        )
    )
    assert options["grpc.max_receive_message_length"] == 5000
    assert options["grpc.max_send_message_length"] == 5000
    assert options["grpc.keepalive_time_ms"] == 1500
    assert options["grpc.http2.min_ping_interval_without_data_ms"] == 250
    assert options["grpc.max_connection_age_ms"] == 60_000
    assert "grpc.max_connection_age_ms" not in dict(
        channel_options(ChassisSettings(max_connection_age_s=0))
    )
