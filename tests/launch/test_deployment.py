"""Tests the files that a cluster reads: their form is valid, and ports through which code can be run are closed."""

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from deepspeed.launcher.runner import EXPORT_ENVS, fetch_hostfile
from ray.autoscaler._private.util import prepare_config, validate_config

from emocap_pretrain.config.batch_split import batch_split
from emocap_pretrain.config.load import load

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
BIN = Path(sys.executable).parent
KUBERNETES = "1.35"
FILES = [*LAUNCH.glob("*.yaml"), *LAUNCH.glob("*.sh"), LAUNCH / "Dockerfile", LAUNCH / "hostfile.sample"]
HEALTH = re.compile(r"RAY_health_check_\w+|RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S")


@pytest.fixture
def manifests() -> dict[str, Any]:
    """Returns the documents of rayjob.yaml by kind."""
    return {each["kind"]: each for each in yaml.safe_load_all((LAUNCH / "rayjob.yaml").read_text())}


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((LAUNCH / "ray-cluster.yaml").read_text())


def templates(manifests: dict[str, Any]) -> dict[str, Any]:
    """Returns the pod templates of the job by their role."""
    spec = manifests["RayJob"]["spec"]
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    head = spec["rayClusterSpec"]["headGroupSpec"]
    return {"submitter": spec["submitterPodTemplate"], "head": head["template"], "worker": group["template"]}


def check_job(job: dict[str, Any]) -> None:
    schema = json.loads((Path(__file__).parent / "schemas" / "rayjob.schema.json").read_text())
    jsonschema.validate(job, schema)


def check_kubernetes(resource: dict[str, Any]) -> None:
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def as_resource(template: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}


def settings(container: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"]}


def objects(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the paths of the mappings below `tree` whose keys a schema defines."""
    if isinstance(tree, dict) and path[-1:] not in {("metadata",), ("rayStartParams",), ("template",)}:
        yield path
    if path[-1:] not in {("metadata",), ("template",), ("submitterPodTemplate",)}:
        children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
        for key, child in children:
            yield from objects(child, (*path, key))


def test_the_rayjob_and_what_belongs_to_it_are_of_the_form_that_kubernetes_takes(manifests: dict[str, Any]) -> None:
    check_job(manifests["RayJob"])
    for kind in ("ConfigMap", "NetworkPolicy"):
        check_kubernetes(manifests[kind])
    for template in templates(manifests).values():
        check_kubernetes(as_resource(template))


def test_a_field_that_kuberay_does_not_know_is_refused_wherever_it_is(manifests: dict[str, Any]) -> None:
    paths = list(objects(manifests["RayJob"]))
    assert len(paths) >= 7
    for path in paths:
        job = copy.deepcopy(manifests["RayJob"])
        place = job
        for key in path:
            place = place[key]
        place["backoffLimits"] = 3
        with pytest.raises(jsonschema.ValidationError, match="backoffLimits"):
            check_job(job)


def test_a_misspelt_field_of_a_pod_is_refused(manifests: dict[str, Any]) -> None:
    template = templates(manifests)["worker"]
    template["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGracePeriodSecond"):
        check_kubernetes(as_resource(template))


def test_the_run_of_the_config_map_is_a_config_that_fits_the_gpus_of_the_job(
    manifests: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(manifests["ConfigMap"]["data"]["run.yaml"])
    config = load(path)
    group = manifests["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    ranks = group["replicas"] * int(limits["nvidia.com/gpu"])
    assert batch_split(config.global_batch, config.micro_batch, ranks=ranks)
    assert (config.cluster.min_ranks or ranks) < ranks, "the loss of a node leaves too few ranks"
    mounts = templates(manifests)["worker"]["spec"]["containers"][0]["volumeMounts"]
    assert any(config.data.cache.startswith(mount["mountPath"]) for mount in mounts)


def test_ranks_on_kubernetes_have_shared_memory_and_time_to_save(manifests: dict[str, Any]) -> None:
    pod = templates(manifests)["worker"]["spec"]
    volume = next(each for each in pod["volumes"] if each["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]
    drain_s = int(settings(pod["containers"][0])["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 60 <= drain_s < pod["terminationGracePeriodSeconds"]


def test_ray_s_ports_in_kubernetes_ask_for_a_token_and_are_open_to_the_job_alone(manifests: dict[str, Any]) -> None:
    ray = manifests["RayJob"]["spec"]["rayClusterSpec"]
    assert ray["authOptions"] == {"mode": "token"}
    assert ray["headGroupSpec"]["serviceType"] == "ClusterIP"
    policy = manifests["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    for role, template in templates(manifests).items():
        labels = template["metadata"]["labels"].items()
        assert policy["podSelector"]["matchLabels"].items() <= labels, role
    assert all(peer for rule in policy["ingress"] for peer in rule["from"]), "an empty peer is everybody"
    assert all(rule["from"] for rule in policy["ingress"])


def test_no_pod_runs_as_root_or_holds_a_token_of_kubernetes(manifests: dict[str, Any]) -> None:
    for role, template in templates(manifests).items():
        assert template["spec"]["securityContext"]["runAsNonRoot"], role
        assert template["spec"]["automountServiceAccountToken"] is False, role
        assert template["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False, role


def test_the_version_of_ray_in_the_manifest_is_the_one_of_the_lock_file(manifests: dict[str, Any]) -> None:
    named = manifests["RayJob"]["spec"]["rayClusterSpec"]["rayVersion"]
    assert named == version("ray")
    assert f"ray=={named}" in (ROOT / "requirements.lock").read_text().splitlines()


def test_the_ray_cluster_is_of_the_form_that_ray_up_takes(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(copy.deepcopy(cluster)))
    cluster["idle_timeout"] = 3
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        validate_config(prepare_config(cluster))


def test_the_ray_cluster_shows_its_dashboard_to_the_head_alone_and_asks_for_a_token(cluster: dict[str, Any]) -> None:
    head, worker = (" ".join(cluster[f"{role}_start_ray_commands"]) for role in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head
    for commands in (head, worker):
        assert "RAY_AUTH_MODE=token" in commands
        starts = [each for each in commands.split(". ~/emocap/cluster.env;")[1:] if "ray start" in each]
        assert len(starts) == commands.count("ray start") == 1
    rules = cluster["provider"]["security_group"]["IpPermissions"]
    assert [rule["ToPort"] for rule in rules] == [22]
    assert not any(span["CidrIp"].endswith("/0") for rule in rules for span in rule["IpRanges"])


def test_a_lost_node_is_noticed_equally_soon_on_both_kinds_of_ray_cluster(
    manifests: dict[str, Any], cluster: dict[str, Any]
) -> None:
    text = " ".join(cluster["worker_start_ray_commands"])
    here = dict(pair.split("=") for pair in text.split() if HEALTH.match(pair))
    assert len(here) == 5
    for role in ("head", "worker"):
        there = settings(templates(manifests)[role]["spec"]["containers"][0])
        assert {name: value for name, value in there.items() if HEALTH.match(name)} == here


def test_the_settings_of_ray_s_nodes_are_a_file_that_a_shell_can_read(cluster: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "emocap").mkdir()
    script = f"{cluster['head_start_ray_commands'][0]}; . ~/emocap/cluster.env; echo $RAY_AUTH_MODE; echo $PATH"
    shown = subprocess.run(
        ["bash", "-c", script], env={"HOME": str(tmp_path), "PATH": "/bin"}, capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == ["token", "/home/ubuntu/emocap/.venv/bin:/bin"]


@pytest.mark.parametrize("refusals", [0, 1])
def test_a_spot_node_that_is_to_end_is_drained_once_its_metadata_say_so(
    cluster: dict[str, Any], tmp_path: Path, refusals: int
) -> None:
    (tmp_path / "emocap").mkdir()
    (tmp_path / "emocap" / "cluster.env").write_text("")
    stub(tmp_path, "ray", f'echo "$*" > {tmp_path}/drained')
    stub(tmp_path, "sleep", f"rm -f {tmp_path}/calm")
    stub(
        tmp_path,
        "curl",
        f'case "$*" in *PUT*) echo token;; *"token: token"*instance-action) [ ! -e {tmp_path}/calm ];; *) false;; esac',
    )
    if refusals:
        (tmp_path / "calm").touch()
    command = cluster["worker_start_ray_commands"][-1].replace("/tmp/spot.log", f"{tmp_path}/log")
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-c", f"{command} wait"], env=env, check=True, timeout=30)
    assert "--reason DRAIN_NODE_REASON_PREEMPTION" in (tmp_path / "drained").read_text()


def test_the_hostfile_is_one_that_deepspeed_reads() -> None:
    assert fetch_hostfile(str(LAUNCH / "hostfile.sample")) == {"node1": 8, "node2": 8}


def test_the_page_names_every_variable_that_deepspeed_sends_over_ssh() -> None:
    page = (ROOT / "docs" / "clusters.md").read_text()
    assert "MLFLOW" in EXPORT_ENVS, "then MLFLOW_TRACKING_PASSWORD is no longer shown"
    assert all(f"`{name}`" in page for name in [*EXPORT_ENVS, "NCCL"])


def test_the_dockerfile_keeps_the_rules_of_hadolint() -> None:
    done = subprocess.run([BIN / "hadolint", LAUNCH / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_is_installed_by_setup_sh_from_the_lock_file_with_xformers(tmp_path: Path) -> None:
    for name in ("requirements.lock", "pyproject.toml", "launch/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    pip = f'#!/bin/sh\necho "$*" >> {tmp_path}/installed\n'
    (tmp_path / "pip").write_text(pip)
    made = "mkdir -p .venv/bin .venv/lib/python3.12/site-packages"
    stub(tmp_path, "python3.12", f'[ "$1" = -c ] || {{ {made}; install -m 755 {tmp_path}/pip .venv/bin/pip; }}')
    stub(tmp_path, "sleep", "exec /bin/sleep 0.05")
    text = (LAUNCH / "Dockerfile").read_text()
    command = text[text.index("RUN . launch/setup.sh") + 4 : text.index("\n\nCOPY --chown=1000:1000 . .")]
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "python3.12"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", command], cwd=tmp_path, env=env, check=True, timeout=60)
    installed = (tmp_path / "installed").read_text()
    assert "--no-deps -r requirements.lock" in installed
    assert re.search(r"--no-deps xformers==\d", installed)
    assert "==" not in text.replace("xformers==[0-9.]*", ""), "versions are in requirements.lock"


def test_the_image_takes_nothing_of_a_checkout_that_it_does_not_need() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    for name in (rule[1:] for rule in rules if rule.startswith("!")):
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] not in {"data", "runs", ".git", ".venv", ".env"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_secret_or_opens_a_port_to_all(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|-----BEGIN|://[^/\s:]+:[^@\s]+@", text)
    assert not re.search(r"(?i)(secret|password|token)[a-z_]*\s*[:=]\s*['\"]?[a-z0-9+/]{12,}", text)
    assert not re.search(r"(?<!\d)0\.0\.0\.0|\[::\]", text)


def stub(folder: Path, name: str, body: str) -> None:
    """Writes a fake program `name` into the folder."""
    path = folder / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)
