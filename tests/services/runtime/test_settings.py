"""Configuration by flags and environment, and the messages about invalid values."""

import os

import pytest
import yaml
from pydantic import Field, SecretStr, ValidationError

from tidegate.chassis import ChassisSettings


class ModelSettings(ChassisSettings):
    """Settings of a server with a model."""

    batch_delay_ms: float = Field(2.0, ge=0, le=1000, description="How long a batch may wait.")
    warm_up: bool = Field(True, description="Run once before serving.")
    token: SecretStr = Field(SecretStr("hush"), description="Of the registry.")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    """Removes the variables that the environment of the tests may have."""
    for name in os.environ:
        if name.startswith(("TIDEGATE_", "OTEL_")):
            monkeypatch.delenv(name)


def refused(capsys, *flags, model=ModelSettings):
    """Gives the message about invalid flags."""
    with pytest.raises(SystemExit) as caught:
        model.from_command_line(flags)
    assert caught.value.code == 2
    return capsys.readouterr().err


def printed(capsys, *flags):
    """Gives the output before a successful exit."""
    with pytest.raises(SystemExit) as caught:
        ModelSettings.from_command_line(flags)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_flag_beats_environment_beats_default(monkeypatch):
    assert ModelSettings.from_command_line([]).batch_delay_ms == 2.0
    monkeypatch.setenv("TIDEGATE_BATCH_DELAY_MS", "3")
    assert ModelSettings.from_command_line([]).batch_delay_ms == 3.0
    assert ModelSettings.from_command_line(["--batch-delay-ms=4"]).batch_delay_ms == 4.0


def test_boolean_flags_have_a_negative_form(monkeypatch):
    assert ModelSettings.from_command_line(["--no-warm-up"]).warm_up is False
    monkeypatch.setenv("TIDEGATE_WARM_UP", "false")
    assert ModelSettings.from_command_line(["--warm-up"]).warm_up is True


def test_help_lists_every_field_with_its_variable(capsys):
    text = " ".join(printed(capsys, "--help").split())
    for name in ModelSettings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"TIDEGATE_{name.upper()}" in text
    assert "How long a batch may wait. Range: at least 0, at most 1000. Default: 2.0." in text


def test_every_field_has_a_description():
    assert [
        name for name, field in ModelSettings.model_fields.items() if not field.description
    ] == []


def test_printed_configuration_is_yaml_with_the_source_of_each_value(capsys, monkeypatch):
    monkeypatch.setenv("TIDEGATE_HOST", "0.0.0.0")
    text = printed(capsys, "--grpc-port=7", "--print-config")
    values = yaml.safe_load(text)
    assert values.keys() == ModelSettings.model_fields.keys()
    assert (values["grpc_port"], values["host"], values["warm_up"]) == (7, "0.0.0.0", True)
    assert "grpc_port: 7  # flag --grpc-port\n" in text
    assert "host: 0.0.0.0  # env TIDEGATE_HOST\n" in text
    assert "warm_up: true  # default\n" in text


def test_printed_configuration_can_be_read_back(capsys, monkeypatch):
    values = yaml.safe_load(printed(capsys, "--trace-sample-ratio=0.25", "--print-config"))
    for name, value in values.items():
        if value is not None:
            monkeypatch.setenv(f"TIDEGATE_{name.upper()}", str(value))
    again = ModelSettings.from_command_line([])
    assert again.trace_sample_ratio == 0.25


def test_secrets_are_not_printed(capsys):
    assert "hush" not in printed(capsys, "--print-config")
    assert "hush" not in printed(capsys, "--help")
    assert "xyz" not in printed(capsys, "--token=xyz", "--print-config")


def test_value_out_of_range_is_named_with_its_range(capsys):
    message = refused(capsys, "--grpc-port=70000")
    assert "--grpc-port (TIDEGATE_GRPC_PORT): got '70000'" in message
    assert "range: at least 0, at most 65535" in message


def test_invalid_environment_variable_is_named(capsys, monkeypatch):
    monkeypatch.setenv("TIDEGATE_LOG_LEVEL", "loud")
    message = refused(capsys)
    assert "TIDEGATE_LOG_LEVEL" in message
    assert "debug, info, warning, error" in message


def test_all_problems_are_reported_at_once(capsys):
    message = refused(capsys, "--grpc-port=x", "--drain-deadline-s=-1")
    assert "--grpc-port" in message
    assert "--drain-deadline-s" in message


def test_the_grace_period_of_the_pod_sets_the_time_for_running_calls(capsys):
    flags = ["--termination-grace-s=45", "--pre-stop-s=10", "--drain-delay-s=1"]
    settings = ModelSettings.from_command_line(flags)
    # 45 - 10 - 1 - 0.1 of drain_hold_s - 6 for cancelled calls and spans
    assert settings.drain_deadline_s == 27.9
    assert ModelSettings.from_command_line([]).drain_deadline_s == 30
    assert "drain_deadline_s: 27.9" in printed(capsys, *flags, "--print-config")
    shorter = ModelSettings.from_command_line([*flags, "--drain-deadline-s=5"])
    assert shorter.drain_deadline_s == 5


def test_a_grace_period_shorter_than_the_drain_is_refused(capsys):
    message = refused(capsys, "--termination-grace-s=45", "--drain-deadline-s=40")
    assert "termination_grace_s: 45 is too short for the drain, which takes up to 46.1" in message
    assert "raise the Pod's terminationGracePeriodSeconds" in message
    message = refused(capsys, "--termination-grace-s=12", "--pre-stop-s=10")
    assert "takes up to 16.1: pre_stop_s 10" in message
    message = refused(capsys, "--termination-grace-s=0")
    assert "range: more than 0" in message


def test_unknown_and_shortened_flags_are_refused(capsys):
    assert "--nonsense" in refused(capsys, "--nonsense=1")
    assert "--grpc-por" in refused(capsys, "--grpc-por=1")


def test_missing_file_is_named(capsys):
    message = refused(capsys, "--tls-cert-file=/nowhere.pem", "--tls-key-file=/nowhere.pem")
    assert "--tls-cert-file" in message
    assert "no such file: /nowhere.pem" in message


def test_certificate_without_key_is_refused(capsys, tmp_path):
    file = tmp_path / "cert.pem"
    file.touch()
    assert "tls_key_file" in refused(capsys, f"--tls-cert-file={file}")
    assert "tls_client_ca_file needs" in refused(capsys, f"--tls-client-ca-file={file}")


@pytest.mark.parametrize(
    ("variable", "field", "value"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "otlp_endpoint", "http://collector:4317"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "otlp_endpoint", "https://collector:4317"),
        ("OTEL_SERVICE_NAME", "service_name", "vision"),
    ],
)
def test_standard_variables_of_opentelemetry_apply(monkeypatch, variable, field, value):
    monkeypatch.setenv(variable, value)
    assert getattr(ModelSettings.from_command_line([]), field) == value
    flag = f"--{field.replace('_', '-')}"
    assert getattr(ModelSettings.from_command_line([flag, "http://other:1"]), field) == (
        "http://other:1"
    )


RESOURCE = "service.name=from%20resource,service.version=1.2,deployment.environment.name=prod,x=y"


@pytest.mark.parametrize(
    ("environment", "flags", "values"),
    [
        ({"OTEL_RESOURCE_ATTRIBUTES": RESOURCE}, [], {"service_name": "from resource"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": RESOURCE}, [], {"service_version": "1.2"}),
        ({"OTEL_RESOURCE_ATTRIBUTES": RESOURCE}, [], {"deployment_environment": "prod"}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": RESOURCE, "OTEL_SERVICE_NAME": "vision"},
            [],
            {"service_name": "vision"},
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": RESOURCE, "TIDEGATE_SERVICE_VERSION": "2"},
            ["--service-name=flag"],
            {"service_name": "flag", "service_version": "2"},
        ),
        ({"OTEL_TRACES_EXPORTER": "none"}, [], {"traces_exporter": "none"}),
        ({"OTEL_TRACES_EXPORTER": "none"}, ["--traces-exporter=otlp"], {"traces_exporter": "otlp"}),
        ({"OTEL_SDK_DISABLED": "True"}, [], {"traces_exporter": "none"}),
        ({"OTEL_SDK_DISABLED": "false"}, [], {"traces_exporter": None}),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, [], {"trace_sampler": "always_off"}),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            [],
            {"trace_sampler": "traceidratio", "trace_sample_ratio": 0.25},
        ),
        # As in the SDK, only samplers by ratio read the argument.
        ({"OTEL_TRACES_SAMPLER_ARG": "0.25"}, [], {"trace_sample_ratio": 1.0}),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_TRACES_SAMPLER_ARG": "x"},
            [],
            {"trace_sampler": "parentbased_always_on", "trace_sample_ratio": 1.0},
        ),
        (
            {"OTEL_TRACES_SAMPLER": "always_off"},
            ["--trace-sample-ratio=0.5"],
            {"trace_sampler": "parentbased_traceidratio", "trace_sample_ratio": 0.5},
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"},
            [],
            {"otlp_endpoint": "collector:4317"},
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, [], {"otlp_protocol": "http/protobuf"}),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
            [],
            {"otlp_protocol": "grpc"},
        ),
        # Over HTTP one variable has the base URL of all signals, the other the URL for spans.
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/",
            },
            [],
            {"otlp_endpoint": "http://collector:4318/v1/traces"},
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/spans",
            },
            [],
            {"otlp_endpoint": "http://collector:4318/spans"},
        ),
        # The same holds where a flag or a variable of Tidegate sets HTTP.
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318/base"},
            ["--otlp-protocol=http/protobuf"],
            {"otlp_endpoint": "http://collector:4318/base/v1/traces"},
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318",
                "TIDEGATE_OTLP_PROTOCOL": "http/protobuf",
            },
            [],
            {"otlp_endpoint": "http://collector:4318/"},
        ),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            },
            ["--otlp-protocol=grpc"],
            {"otlp_endpoint": "http://collector:4317"},
        ),
        # An empty variable counts as unset.
        ({"OTEL_SERVICE_NAME": "", "OTEL_TRACES_EXPORTER": ""}, [], {"service_name": "tidegate"}),
    ],
)
def test_standard_variables_mean_what_they_mean_to_the_sdk(monkeypatch, environment, flags, values):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = ModelSettings.from_command_line(flags)
    assert {name: getattr(settings, name) for name in values} == values


def test_standard_variable_beats_the_default_name_of_a_server(monkeypatch):
    from tidegate.serving.vision.settings import VisionSettings

    monkeypatch.setenv("OTEL_SERVICE_NAME", "cats")
    assert VisionSettings.from_command_line([]).service_name == "cats"


def test_printed_configuration_names_the_standard_variable_that_applies(capsys, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", RESOURCE)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "vision")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")
    monkeypatch.setenv("TIDEGATE_DEPLOYMENT_ENVIRONMENT", "test")
    lines = printed(capsys, "--otlp-protocol=grpc", "--print-config").splitlines()
    assert set(lines) >= {
        "service_name: vision  # env OTEL_SERVICE_NAME",
        "service_version: '1.2'  # env OTEL_RESOURCE_ATTRIBUTES",
        "deployment_environment: test  # env TIDEGATE_DEPLOYMENT_ENVIRONMENT",
        "traces_exporter: none  # env OTEL_SDK_DISABLED",
        "otlp_endpoint: collector:4317  # env OTEL_EXPORTER_OTLP_ENDPOINT",
        "otlp_protocol: grpc  # flag --otlp-protocol",
        "trace_sampler: parentbased_traceidratio  # default",
    }


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_EXPORTER": "none,otlp"}, "OTEL_TRACES_EXPORTER"),
        ({"OTEL_TRACES_SAMPLER": "xray"}, "OTEL_TRACES_SAMPLER"),
        (
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG",
        ),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_PROTOCOL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "grpc://collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317/path"}, "has a path"),
        (
            {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318",
            },
            "is no URL",
        ),
    ],
)
def test_unsupported_value_of_a_standard_variable_is_named(capsys, monkeypatch, environment, named):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert named in refused(capsys)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        ChassisSettings().grpc_port = 1
