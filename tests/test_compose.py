"""compose.yaml, Dockerfile and docs/operations.md agree with each other and with the code.

No Docker is needed: these tests read the files. What only an engine can tell, they cannot.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipeline.settings import Settings
from workers.routes import QUEUES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "compose.yaml").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
WORKERS = OURS - {"cli", "web"}
THEIR_SETTINGS = {"HF_HOME", "NUMBA_CACHE_DIR"}  # of huggingface_hub, of numba

any_service = pytest.mark.parametrize("name", sorted(SERVICES))
any_of_ours = pytest.mark.parametrize("name", sorted(OURS))
any_worker = pytest.mark.parametrize("name", sorted(WORKERS))


def queue_of(name: str) -> str:
    command = SERVICES[name]["command"]
    return str(command[command.index("-Q") + 1])


def seconds(text: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60}[unit]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (path, scalar) below a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


def test_the_file_fits_the_compose_specification() -> None:
    folder = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    jsonschema.Draft7Validator(schema).validate(COMPOSE)


def test_every_queue_has_a_worker_and_every_worker_a_queue() -> None:
    assert {queue_of(name) for name in WORKERS} == set(QUEUES)


def test_without_a_profile_every_queue_is_served() -> None:
    started = {name for name in WORKERS if "profiles" not in SERVICES[name]}
    assert {queue_of(name) for name in started} == set(QUEUES)
    assert SERVICES["embed-gpu"]["profiles"] == ["gpu"]


@any_service
def test_a_service_is_checked_and_started_again(name: str) -> None:
    service = SERVICES[name]
    assert "image" in service
    if name == "cli":
        assert service["profiles"] == ["tools"]
        assert service["restart"] == "no"
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")


@any_worker
def test_a_worker_is_asked_for_its_own_queue(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"] == ["CMD", "imgrec", "health", queue_of(name)]


@any_worker
def test_a_worker_runs_the_command_that_the_documentation_shows(name: str) -> None:
    command = " ".join(SERVICES[name]["command"])
    assert re.search(rf"^\| `{name}`.* \| `{command}` \|", OPERATIONS, re.MULTILINE)


@any_worker
def test_a_worker_has_time_to_give_its_shard_back(name: str) -> None:
    from cli.supervisor import STOP_S

    assert seconds(SERVICES[name]["stop_grace_period"]) > STOP_S


def test_the_web_server_is_healthy_when_it_can_serve_queries() -> None:
    web = SERVICES["web"]
    assert web["command"][:2] == ["imgrec", "web"]
    assert "/readyz" in web["healthcheck"]["test"][-1]
    assert "ports" not in web
    assert re.search(r"run --rm cli keys create our-shop --scope admin", OPERATIONS)


@any_of_ours
def test_the_servers_answer_before_a_worker_starts(name: str) -> None:
    needed = SERVICES[name]["depends_on"]
    assert set(needed) == {"broker", "cache", "postgres"}
    assert all(how == {"condition": "service_healthy"} for how in needed.values())


@any_of_ours
def test_environment_variables_are_settings(name: str) -> None:
    settings = {field.upper() for field in Settings.model_fields}
    assert set(SERVICES[name]["environment"]) <= settings | THEIR_SETTINGS


@any_of_ours
def test_addresses_name_services_that_exist(name: str) -> None:
    environment = SERVICES[name]["environment"]
    for setting in ("REDIS_URL", "CACHE_URL", "DATABASE_URL"):
        host = re.search(r"@([a-z-]+)[:/]", environment[setting])
        assert host is not None
        assert host[1] in SERVICES
    assert environment["REDIS_URL"] != environment["CACHE_URL"]


@any_of_ours
def test_all_see_the_same_data_and_cannot_write_to_the_photos(name: str) -> None:
    service = SERVICES[name]
    assert "data:/data" in service["volumes"]
    assert service["environment"]["DATA_DIR"] == "/data"
    (products,) = [mount for mount in service["volumes"] if isinstance(mount, dict)]
    assert products["target"] == "/products"
    assert service["environment"]["IMAGE_ROOTS"] == "${IMAGE_ROOTS:-/products}"
    assert products["read_only"] is True
    for setting in ("U2NET_HOME", "HF_HOME"):
        assert service["environment"][setting].startswith("/models/")
    assert "models:/models" in service["volumes"]


@any_of_ours
def test_only_volumes_and_memory_can_be_written(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    writable = ("/data", "/models", "/tmp")
    for setting in ("DATA_DIR", "MODELS_DIR", "U2NET_HOME", "HF_HOME", "NUMBA_CACHE_DIR"):
        assert service["environment"][setting].startswith(writable)


@any_of_ours
def test_the_image_has_the_libraries_of_its_device(name: str) -> None:
    service = SERVICES[name]
    extra = service["build"]["args"]["EXTRA"]
    assert service["image"] == f"imgrec:{extra}"
    assert service["environment"]["DEVICE"] == {"cpu": "cpu", "gpu": "cuda"}[extra]


def test_no_password_stands_in_the_file() -> None:
    for path, value in leaves(COMPOSE):
        if not isinstance(value, str):
            continue
        for secret in re.findall(r"://[^:/@]*:([^@]+)@", value):
            assert secret.startswith("${"), path
        for secret in re.findall(r"requirepass (.*)", value):
            assert secret.startswith("${"), path
        if re.search(r"(PASSWORD|_AUTH)$", path):
            assert value.startswith("${"), path


def test_a_password_that_is_not_set_stops_compose_with_a_sentence() -> None:
    used = re.findall(r"\$\{(\w+)([^}]*)\}", TEXT)
    secrets = {name for name, _ in used if name.endswith("PASSWORD")}
    assert secrets == {"REDIS_PASSWORD", "POSTGRES_PASSWORD"}
    for name, rest in used:
        if name in secrets | {"PRODUCTS_DIR"}:
            assert rest.startswith(":?")
            assert name in rest
        else:
            assert rest.startswith(":-"), f"{name} needs a default"


def test_the_documentation_explains_what_compose_asks_for() -> None:
    for name in set(re.findall(r"\$\{(\w+)", TEXT)):
        assert name in OPERATIONS, name


def leaves_the_machine(port: Any) -> bool:
    """Tell whether a published port, in the short or the long form, is not on loopback alone."""
    if isinstance(port, dict):
        return port.get("host_ip") not in ("127.0.0.1", "::1")
    return not str(port).startswith(("127.0.0.1:", "[::1]:"))


@any_service
def test_no_port_leaves_this_machine(name: str) -> None:
    assert [port for port in SERVICES[name].get("ports", []) if leaves_the_machine(port)] == []
    assert SERVICES[name].get("network_mode") != "host"


def test_what_the_comments_propose_to_publish_stays_here_too() -> None:
    proposed = [yaml.safe_load(found) for found in re.findall(r"# *ports: (\[.*\])", TEXT)]
    assert proposed
    assert not any(leaves_the_machine(port) for ports in proposed for port in ports)


@pytest.mark.parametrize(
    "port", ["6379:6379", 6379, "0.0.0.0:6379:6379", {"target": 6379, "published": "6379"}]
)
def test_a_port_of_the_whole_network_would_be_noticed(port: Any) -> None:
    assert leaves_the_machine(port)
    assert not leaves_the_machine("127.0.0.1:6379:6379")
    assert not leaves_the_machine({"target": 6379, "host_ip": "127.0.0.1"})


def test_the_broker_keeps_everything_and_the_cache_may_forget() -> None:
    broker, cache = (COMPOSE["configs"][name]["content"] for name in ("broker", "cache"))
    assert "appendonly yes" in broker
    assert "maxmemory-policy noeviction" in broker
    assert SERVICES["broker"]["volumes"] == ["broker:/data"]
    assert "appendonly no" in cache
    assert "maxmemory-policy allkeys-lru" in cache
    assert re.search(r"^maxmemory \$\{CACHE_MEMORY:-\d+mb\}$", cache, re.MULTILINE)


def test_the_store_is_started_on_demand_and_takes_no_empty_password() -> None:
    store = SERVICES["store"]
    assert store["profiles"] == ["store"]
    assert "AWS_SECRET_ACCESS_KEY" in store["entrypoint"][2]
    assert store["entrypoint"][2].splitlines()[-1] == 'exec weed "$$@"'
    assert "-master.telemetry=false" in store["command"]
    content = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", COMPOSE["configs"]["store"]["content"])
    ((credentials,),) = [each["credentials"] for each in json.loads(content)["identities"]]
    assert credentials == {"accessKey": "imgrec", "secretKey": ""}
    url = re.search(r"AWS_ENDPOINT_URL=http://(\w+):(\d+)", OPERATIONS)
    assert url is not None
    assert (url[1], f"-s3.port={url[2]}") == ("store", store["command"][-3])


def test_every_named_volume_is_declared() -> None:
    used = {
        mount.split(":")[0]
        for service in SERVICES.values()
        for mount in service.get("volumes", [])
        if isinstance(mount, str) and not mount.startswith((".", "/"))
    }
    assert used == set(COMPOSE["volumes"])


def test_images_are_pinned_to_a_release() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].partition(":")[2]
        assert tag, name
        assert tag != "latest", name


def dockerfile(instruction: str) -> list[str]:
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    joined = text.replace("\\\n", "")
    return re.findall(rf"^{instruction} (.*)$", joined, flags=re.MULTILINE)


def test_the_image_does_not_run_as_root() -> None:
    assert dockerfile("USER")[-1].split(":")[0] not in ("0", "root")


def test_the_image_sets_what_compose_sets() -> None:
    environment = dict(re.findall(r"(\w+)=(\S+)", dockerfile("ENV")[0]))
    for name in ("DATA_DIR", "U2NET_HOME", "HF_HOME"):
        assert environment[name] == SERVICES["query"]["environment"][name]
    arguments = {argument.partition("=")[0] for argument in dockerfile("ARG")}
    assert arguments == set(SERVICES["query"]["build"]["args"])


def ignored(path: str) -> bool:
    """Apply .dockerignore as Docker does: the last rule that fits the path or a parent wins."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    answer = False
    parts = Path(path).parts
    parents = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    for line in filter(None, (line.strip() for line in lines)):
        if line.startswith("#"):
            continue
        rule = line.removeprefix("!").rstrip("/").removeprefix("**/")
        names = parts if line.startswith("**/") else parents
        # One star stays within one level.
        fits = any(
            fnmatch.fnmatchcase(name, rule) and name.count("/") == rule.count("/") for name in names
        )
        if fits:
            answer = not line.startswith("!")
    return answer


NEEDED = """celeryconfig.py cli/main.py workers/embed.py pipeline/store/schema.sql pyproject.toml
constraints.txt constraints-cpu.txt README.md LICENSE models/imgrec-mini/config.json"""
UNWANTED = """.env .git/config .venv/bin/python data/app.db data/products/shoe.jpg
models/u2net/u2netp.onnx models/shoe/color/model.pt tests/test_compose.py
cli/__pycache__/main.cpython-312.pyc"""


@pytest.mark.parametrize("path", NEEDED.split())
def test_what_the_image_needs_reaches_the_build(path: str) -> None:
    assert not ignored(path)


@pytest.mark.parametrize("path", UNWANTED.split())
def test_nothing_private_or_large_reaches_the_build(path: str) -> None:
    assert ignored(path)
