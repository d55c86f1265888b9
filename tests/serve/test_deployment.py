"""The Dockerfile, the Kubernetes example and their page name only what there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bertrt.serve.app import ENDPOINTS

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "deployment.md"
FOLDER = ROOT / "docs" / "deployment"
PATHS = {own.path for own in ENDPOINTS}


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """The options of `bertrt serve`."""
    program = [sys.executable, "-m", "bertrt", "serve", "--help"]
    told = subprocess.run(program, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return set(re.findall(r"--[a-z][a-z-]*", told))


@pytest.fixture(scope="module")
def docker() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, of its last stage only what it has itself."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def only(instructions: list[tuple[str, str]], name: str) -> str:
    (found,) = (value for own, value in instructions if own == name)
    return found


@pytest.fixture(scope="module")
def kinds() -> dict[str, Any]:
    documents = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))
    kinds = {document["kind"]: document for document in documents}
    assert len(kinds) == len(documents)
    return kinds


@pytest.fixture(scope="module")
def container(kinds) -> dict[str, Any]:
    (found,) = kinds["Deployment"]["spec"]["template"]["spec"]["containers"]
    return found


def options(arguments: list[str]) -> dict[str, str]:
    """The options of a command line, with their values."""
    return {
        name: value
        for name, value in zip(arguments, [*arguments[1:], ""], strict=True)
        if name.startswith("--")
    }


def test_the_image_starts_what_there_is(docker, flags) -> None:
    program, command, *arguments = json.loads(only(docker, "ENTRYPOINT"))
    assert (program, command) == ("bertrt", "serve")
    given = options(arguments)
    assert given.keys() <= flags
    # From outside a container its own loopback is not to be reached.
    assert given["--host"] == "0.0.0.0"
    assert given["--port"] == only(docker, "EXPOSE")


def test_the_image_asks_for_its_health_where_it_is_told(docker) -> None:
    url = re.search(r"http://127\.0\.0\.1:(\d+)([/\w]+)", only(docker, "HEALTHCHECK"))
    assert url
    assert url[1] == only(docker, "EXPOSE")
    assert url[2] in PATHS
    # As Docker runs it: it is Python, and fails where nothing answers.
    program = json.loads(only(docker, "HEALTHCHECK").partition("CMD ")[2])
    code = program[2].replace(url[0], "http://127.0.0.1:1/health/live")
    done = subprocess.run([sys.executable, *program[1:2], code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_the_image_is_built_of_what_there_is(docker) -> None:
    told = (ROOT / "pyproject.toml").read_text()
    assert "/source[serve]" in dict(docker)["RUN"]
    assert re.search(r"^serve = \[", told, re.MULTILINE)
    ignored = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert "*" in ignored
    assert all((ROOT / name).exists() for name in kept)
    # What a wheel is made of; the test's own folder and the like are not.
    files = set(re.findall(r'(?:readme = |license-files = \[)"([^"]+)"', told))
    assert {*files, "CMakeLists.txt", "setup.py", "pyproject.toml"} | {
        *("bertrt", "cmake", "csrc", "export")
    } == set(kept)


def test_the_image_is_not_roots(docker, kinds) -> None:
    user, group = map(int, only(docker, "USER").split(":"))
    context = kinds["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (user, group)
    assert user and group and context["runAsNonRoot"] is True


def test_the_container_is_given_what_there_is(container, docker, flags) -> None:
    assert options(container["args"]).keys() <= flags
    (port,) = container["ports"]
    assert str(port["containerPort"]) == only(docker, "EXPOSE")
    for probe in ("livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in PATHS
        assert asked["port"] == port["name"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"
    (variable,) = (own["name"] for own in container["env"])
    source = (ROOT / "bertrt" / "commands" / "serve.py").read_text()
    assert f'"{variable}"' in source
    mounts = {own["name"]: own for own in container["volumeMounts"]}
    assert container["args"][0].startswith(mounts["models"]["mountPath"] + "/")


def test_the_container_writes_nothing_and_may_nothing(container) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert all(own["readOnly"] for own in container["volumeMounts"])


def test_the_end_has_time_to_drain(kinds, container) -> None:
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert sleep == "sleep"
    drain = float(options(container["args"])["--drain-seconds"])
    assert pod["terminationGracePeriodSeconds"] >= int(seconds) + drain + 5
    # The probe has told the balancer by then.
    ready = container["readinessProbe"]
    assert int(seconds) > ready["periodSeconds"] * ready["failureThreshold"]


def test_threads_are_whole_cores(container) -> None:
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"].isdigit()


def test_the_documents_are_about_each_other(kinds) -> None:
    assert kinds.keys() == {
        *("Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler")
    }
    deployment = kinds["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["Service"]["spec"]["selector"] == labels
    target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    # The autoscaler's number would be set back at every apply.
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("version", ["1.25", "1.36"])
def test_kubernetes_schemas_take_the_documents(kinds, version) -> None:
    validate = pytest.importorskip("kubernetes_validate").validate
    for document in kinds.values():
        validate(document, version, strict=True)


def test_the_page_names_only_what_there_is(flags) -> None:
    text = PAGE.read_text()
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= flags
    assert set(re.findall(r"`(/[a-z/]+)`", text)) - {"/sys/fs/cgroup"} <= PATHS
    extras = re.findall(r"bertrt\[(\w+)\]", text)
    told = (ROOT / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"^{own} = \[", told, re.MULTILINE) for own in extras)
    for link in re.findall(r"\]\(([^)#:]+)", text):
        assert (PAGE.parent / link).exists(), link
