"""Faults of a cluster of three nodes, all of them on the loopback of this machine."""

import contextlib
import os
import time
from pathlib import Path
from unittest import mock

from faults import end
from ray.cluster_utils import Cluster
from scene import MARK

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


def _begin(scene):
    """Start a head without CPUs and two nodes of one; drivers find them."""
    with _quiet(scene):
        cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0})
    _add_node(scene, cluster)
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
