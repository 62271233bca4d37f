"""Checks Dockerfile and docker-compose.yml without a Docker engine; each finding says what to do.

Syntax by other people's parsers (BuildKit's own for the Dockerfile, models made from the compose
specification's schema for the other), and our rules on top: non-root, read-only, pinned, watched, no
default secret.
"""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from compose_pydantic.models import ComposeSpecification
from pydantic import ValidationError

ROOT = Path(__file__).resolve().parents[1]
_INSTRUCTIONS = frozenset(
    {
        "ADD",
        "ARG",
        "CMD",
        "COPY",
        "ENTRYPOINT",
        "ENV",
        "EXPOSE",
        "FROM",
        "HEALTHCHECK",
        "LABEL",
        "ONBUILD",
        "RUN",
    }
    | {"SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"}
)
_LAST_STAGE_NEEDS = ("USER", "HEALTHCHECK", "CMD")
_SECRET_NAME = re.compile(r"(?:PASSWORD|SECRET|KEY|TOKEN)\b")
_REQUIRED_VARIABLE = re.compile(r"\$\{\w+:\?[^}]+\}")
_ONE_SHOT = "service_completed_successfully"


def dockerfile_findings(text: str) -> Iterator[str]:
    """What is wrong with a Dockerfile, a line each."""
    # BuildKit's parser comes as a wheel for the usual machines; on others the rules wait for CI.
    if importlib.util.find_spec("dockerfile") is None:
        return
    import dockerfile

    try:
        commands = dockerfile.parse_string(text)
    except dockerfile.GoParseError as error:
        yield f"does not parse: {error}"
        return
    yield from _base_image_findings(commands)
    last_stage = max((n for n, each in enumerate(commands) if each.cmd == "FROM"), default=0)
    final = {each.cmd: each for each in commands[last_stage:]}
    for name in _LAST_STAGE_NEEDS:
        if name not in final:
            yield f"the last stage needs {name}"
    user = final["USER"].value[0].partition(":")[0] if "USER" in final else ""
    if user in {"root", "0"}:
        yield "the last USER is root: name another"
    for each in commands:
        if each.cmd not in _INSTRUCTIONS:
            yield f"line {each.start_line}: no instruction is called {each.cmd}"
        if each.cmd == "ADD":
            yield f"line {each.start_line}: COPY says what is copied, ADD also fetches and unpacks"
        if each.cmd in {"CMD", "ENTRYPOINT"} and not each.json:
            yield f"line {each.start_line}: {each.cmd} as a JSON list, or signals end at a shell"
        if each.cmd in {"ARG", "ENV"} and _SECRET_NAME.search(each.original):
            yield f"line {each.start_line}: a secret would stay in the image's history"


def _base_image_findings(commands: Any) -> Iterator[str]:
    stages: set[str] = set()
    for each in commands:
        if each.cmd != "FROM":
            continue
        image, *rest = each.value
        if image not in stages and not _is_pinned(image):
            yield f"line {each.start_line}: base image {image} needs a version"
        if len(rest) == 2:
            stages.add(rest[1])


def _is_pinned(image: str) -> bool:
    if "@sha256:" in image:
        return True
    tag = image.rpartition("/")[2].partition(":")[2]
    return bool(tag) and tag != "latest"


def compose_findings(text: str) -> Iterator[str]:
    """What is wrong with a compose file, a line each."""
    # The specification leaves names that begin with x- to the author.
    content = {name: part for name, part in yaml.safe_load(text).items() if not name.startswith("x-")}
    try:
        ComposeSpecification.model_validate(content)
    except ValidationError as error:
        yield from sorted(
            {f"{'.'.join(map(str, each['loc'][:4]))}: {each['msg']}" for each in error.errors()}
        )
        return
    services = content.get("services") or {}
    volumes = set(content.get("volumes") or {})
    for name, service in services.items():
        for finding in _service_findings(service, services, volumes):
            yield f"service {name}: {finding}"


def _service_findings(
    service: dict[str, Any], services: dict[str, dict[str, Any]], volumes: set[str]
) -> Iterator[str]:
    if not _is_pinned(service.get("image", "")) and "build" not in service:
        yield "image needs a version"
    if service.get("user", "root").partition(":")[0] in {"root", "0"}:
        yield "needs a user other than root"
    if service.get("read_only") is not True:
        yield "needs read_only: true, with tmpfs for what it must write"
    if not service.get("healthcheck"):
        yield "needs a healthcheck, or one that is disabled on purpose"
    for variable, value in (service.get("environment") or {}).items():
        if _SECRET_NAME.search(variable) and not _REQUIRED_VARIABLE.fullmatch(str(value)):
            yield f"{variable} must be ${{NAME:?what to set}}: a default secret is everybody's secret"
    for other, how in (service.get("depends_on") or {}).items():
        if other not in services:
            yield f"waits for {other}, which is no service"
        elif how["condition"] == _ONE_SHOT and services[other].get("restart") != "no":
            yield f'waits for the end of {other}, which needs restart: "no"'
    for volume in service.get("volumes") or []:
        source = volume.partition(":")[0]
        if not source.startswith(("/", ".", "$")) and source not in volumes:
            yield f"volume {source} is not declared"


def main() -> int:
    checks = {"Dockerfile": dockerfile_findings, "docker-compose.yml": compose_findings}
    findings = [
        f"{name}: {finding}" for name, check in checks.items() for finding in check((ROOT / name).read_text())
    ]
    print("\n".join(findings) or f"{' and '.join(checks)}: no findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
