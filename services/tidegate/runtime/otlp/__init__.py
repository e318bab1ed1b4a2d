"""Span export over OTLP: OpenTelemetry's standard variables, and the exporters that they configure.

`environment` reads the variables and needs nothing but Python. `exporters` makes the exporters and
needs OpenTelemetry's packages. The servers, the command line and the supervisor share both, so that
a variable means the same to all of them.
"""
