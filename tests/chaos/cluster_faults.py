"""Faults of a cluster of three nodes, all of them on the loopback of this machine."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

from faults import end
from ray.cluster_utils import Cluster
from scene import MARK, Skipped

NODE = {"num_cpus": 1, "node_ip_address": "127.0.0.2", "include_dashboard": False}


def node_kill(scene):
    """Kill -9 of a node with all its processes; another node joins later, or none."""
    cluster = _begin(scene)
    driver = scene.under_way()
    _kill_node(scene, cluster)
    if scene.rng.random() < 0.5:
        time.sleep(scene.rng.uniform(0, 3))
        _add_node(scene, cluster)
    end(scene, driver)
    return scene.verdict()


def cluster_raylet_kill(scene):
    """Kill -9 of a node's raylet alone."""
    cluster = _begin(scene)
    driver = scene.under_way()
    scene.strike([_raylet(scene.rng.choice(sorted(cluster.worker_nodes, key=_raylet)))])
    end(scene, driver)
    return scene.verdict()


def head_raylet_kill(scene):
    """Kill -9 of the raylet of the head, to which the driver is connected."""
    cluster = _begin(scene)
    return _until_next_cluster(scene, lambda: [_raylet(cluster.head_node)])


def head_node_kill(scene):
    """Kill -9 of the head with all its processes."""
    cluster = _begin(scene)
    return _until_next_cluster(
        scene,
        lambda: [
            process.process.pid
            for processes in cluster.head_node.all_processes.values()
            for process in processes
        ],
    )


def late_node(scene):
    """No node has room for a worker, until one joins."""
    cluster = _begin(scene, nodes=0)
    driver = scene.start()
    scene.fault()
    time.sleep(scene.rng.uniform(0, 30))
    _add_node(scene, cluster)
    end(scene, driver)
    return scene.verdict()


def node_without_output(scene):
    """One of two nodes does not see the output's folder."""
    shared = scene.folder / "shared"
    shared.mkdir()
    scene.output = str(shared / "out")
    cluster = _begin(scene, nodes=1)
    hide = f'mount -t tmpfs chaos {shared} && exec {Path(sys.executable).with_name("ray")} start --block "$@"'
    options = ["--address", cluster.address, "--num-cpus", "1", "--node-ip-address", NODE["node_ip_address"]]
    blind = subprocess.Popen(
        ["unshare", "--mount", "bash", "-c", hide, "ray", *options, "--disable-usage-stats"],
        env=os.environ | {MARK: str(scene.folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    scene.closing.callback(blind.wait)
    scene.closing.callback(blind.kill)
    if not _joined(scene, cluster, 3):
        raise Skipped("a node with mounts of its own cannot be started; it takes root")
    driver = scene.start()
    scene.fault()
    end(scene, driver)
    scene.expect("not visible to worker" in driver.said, f"nothing is said of the node: {driver.said[-300:]}")
    return scene.verdict()


def _joined(scene, cluster, number):
    """Wait until a cluster has so many nodes that live; False where they do not come."""
    with _quiet(scene), contextlib.suppress(TimeoutError, RuntimeError):
        import ray

        until = time.monotonic() + 60
        ray.init(cluster.address, log_to_driver=False, logging_level="ERROR")
        try:
            while time.monotonic() < until:
                if sum(node["Alive"] for node in ray.nodes()) >= number:
                    return True
                time.sleep(0.2)
        finally:
            ray.shutdown()
    return False


def cluster_gcs_kill(scene):
    """Kill -9 of the cluster's GCS, which does not come back."""
    _begin(scene)
    return _until_next_cluster(scene, lambda: scene.pids("gcs_server "))


def _until_next_cluster(scene, victims):
    driver = scene.under_way()
    scene.strike(victims())
    if scene.finish(driver, 0, 1) == 0:
        scene.whole_at = time.monotonic()
    else:
        del scene.environment["RAY_ADDRESS"]
        scene.complete()
    return scene.verdict()


def _begin(scene, nodes=2):
    """Start a head without CPUs and nodes of one; drivers find them."""
    with _quiet(scene):
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    for _ in range(nodes):
        _add_node(scene, cluster)
    scene.environment["RAY_ADDRESS"] = cluster.address
    scene.closing.callback(_end, scene, cluster)
    return cluster


def _add_node(scene, cluster):
    with _quiet(scene):
        cluster.add_node(**NODE)


def _end(scene, cluster):
    # All its processes have the scene's mark; Ray itself would wait for each of them.
    with contextlib.suppress(Exception), _quiet(scene):
        cluster.shutdown()


def _kill_node(scene, cluster):
    raylet = _raylet(scene.rng.choice(sorted(cluster.worker_nodes, key=_raylet)))
    scene.strike([raylet, *_children(raylet)])


def _raylet(node):
    return node.all_processes["raylet"][0].process.pid


def _children(pid):
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in text.split()]


@contextlib.contextmanager
def _quiet(scene):
    """Let processes that start in the block have the scene's mark, and Ray say nothing."""
    with (
        mock.patch.dict(os.environ, {MARK: str(scene.folder)}),
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
