"""The way of spans to a collector: OpenTelemetry's standard variables, and exporters as they say.

`environment` reads the variables and needs nothing but Python; `exporters` makes what sends spans
and needs OpenTelemetry's packages. The servers, the command line and the supervisor share both, so
that a variable means the same to all of them.
"""
