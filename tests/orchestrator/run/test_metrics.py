import json
import re
from pathlib import Path

import pytest

from toprovar_batch.orchestrator.run.fleet_events import Dismissed, Loaded, Lost, Reported, Worker
from toprovar_batch.orchestrator.run.metrics import EXPORT_PREFIX, METRICS, RunMetrics
from toprovar_batch.orchestrator.run.submission import submit
from toprovar_batch.worker.shard_events import Committed, Progress
from toprovar_batch.worker.shard_stats import ShardStats

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "jobs/cluster/grafana.json").read_text())
NAME = re.compile(rf"{EXPORT_PREFIX}(toprovar_\w+)")


class Registry(dict):
    """Makes metrics that remember: (name, values of the labels) -> value."""

    def counter(self, name, meaning, labels):
        return Remembering(self, name, labels)

    gauge = counter


class Remembering:
    def __init__(self, registry, name, labels):
        self._registry, self._name, self._labels = registry, name, labels

    def set(self, value, tags):
        assert set(tags) == set(self._labels)
        self._registry[self._name, *(tags[label] for label in self._labels)] = value

    def inc(self, value, tags):
        assert value > 0
        key = (self._name, *(tags[label] for label in self._labels))
        self.set(self._registry.get(key, 0) + value, tags)


@pytest.fixture
def registry():
    return Registry()


def make_metrics(registry, job_name="demo", clock=None):
    return RunMetrics(job_name, registry.counter, registry.gauge, clock or (lambda: 0.0))


def loaded(name):
    return Loaded(Worker(actor=None, source=None, name=name), {})


def test_a_shard_is_counted_by_worker_and_by_phase(registry):
    metrics = make_metrics(registry)
    event = loaded("host:1")
    metrics.heard(event)
    times = {"text_ms": 100.0, "sample_ms": 600.0, "decode_ms": 300.0, "encode_ms": 0.0}
    metrics.heard(
        Reported(event.worker, 7, Progress(("a", "b", "c"), 2, {"c": "refused"}, times, (0.2, 0.4)))
    )
    metrics.heard(Reported(event.worker, 7, Progress(("d",), 1, {}, times, ())))
    metrics.heard(Reported(event.worker, 7, Committed(ShardStats(wall_s=4.0), 5000, {}, write_s=0.25)))
    key = ("demo", "host:1")
    assert registry == {
        ("toprovar_workers", "demo"): 1,
        ("toprovar_images_total", *key): 3,
        ("toprovar_errors_total", *key): 1,
        ("toprovar_phase_seconds_total", *key, "text"): pytest.approx(0.2),
        ("toprovar_phase_seconds_total", *key, "sample"): pytest.approx(1.2),
        ("toprovar_phase_seconds_total", *key, "decode"): pytest.approx(0.6),
        ("toprovar_phase_seconds_total", *key, "write"): 0.25,
        ("toprovar_token_layer_ratio", *key): pytest.approx(0.3),
        ("toprovar_busy_ratio", *key): pytest.approx(0.5),
        ("toprovar_shards_total", *key): 1,
        ("toprovar_published_bytes_total", *key): 5000,
    }


def test_a_lost_worker_is_counted_once_for_the_shard_that_it_was_lost_over(registry):
    metrics = make_metrics(registry)
    first, second = loaded("host:1"), loaded("host:2")
    metrics.heard(first)
    metrics.heard(second)
    metrics.heard(Lost(first.worker, 3, ("a",), raised=False, reason="its process died"))
    metrics.heard(Lost(first.worker, 4, (), raised=False, reason="its process died", innocent=True))
    assert registry["toprovar_workers", "demo"] == 1
    assert registry["toprovar_lost_attempts_total", "demo", "host:1"] == 1


def test_gauges_are_set_again_before_ray_forgets_them_but_not_those_of_a_lost_worker(registry):
    now = [0.0]
    metrics = make_metrics(registry, clock=lambda: now[0])
    events = [loaded("host:1"), loaded("host:2")]
    for event in events:
        metrics.heard(event)
        metrics.heard(Reported(event.worker, 0, Progress(("a",), 1, {}, {}, (0.5,))))
    metrics.heard(Lost(events[0].worker, 0, ("a",), raised=False, reason="its process died"))
    registry.clear()
    now[0] = 4.0
    metrics.tick()
    assert not registry
    now[0] = 5.0
    metrics.tick()
    assert registry == {
        ("toprovar_workers", "demo"): 1,
        ("toprovar_token_layer_ratio", "demo", "host:2"): 0.5,
    }


def test_a_dismissed_worker_is_counted_no_more_and_has_lost_no_attempt(registry):
    now = [0.0]
    metrics = make_metrics(registry, clock=lambda: now[0])
    events = [loaded("host:1"), loaded("host:2")]
    for event in events:
        metrics.heard(event)
        metrics.heard(Reported(event.worker, 0, Progress(("a",), 1, {}, {"sample_ms": 5.0}, (0.5,))))
    metrics.heard(Dismissed(events[0].worker))
    assert registry["toprovar_workers", "demo"] == 1
    registry.clear()
    now[0] = 5.0
    metrics.tick()
    assert registry == {
        ("toprovar_workers", "demo"): 1,
        ("toprovar_token_layer_ratio", "demo", "host:2"): 0.5,
    }
    metrics.heard(Dismissed(Worker(actor=None, source=None)))  # it was loading
    assert registry["toprovar_workers", "demo"] == 1


def test_a_run_counts_what_its_dataset_holds(write_job, make_engine_factory, registry, monkeypatch):
    monkeypatch.setattr(
        "toprovar_batch.orchestrator.run.production.RunMetrics",
        lambda job_name: make_metrics(registry, job_name),
    )
    job = write_job(["a cat", "refuse", "a dog", "a cube"], shard_size=2)
    summary = submit(job, engine_factory=make_engine_factory())
    sums = dict.fromkeys(METRICS, 0)
    for (name, *_), value in registry.items():
        sums[name] += value
    assert (summary.dataset.ok, summary.dataset.errors) == (3, 1)
    assert (sums["toprovar_images_total"], sums["toprovar_errors_total"]) == (3, 1)
    assert sums["toprovar_shards_total"] == 2
    assert sums["toprovar_published_bytes_total"] > 0
    phases = {labels[2]: value for (name, *labels), value in registry.items() if "phase" in name}
    assert phases.keys() == {"sample", "write"}
    assert {value for (name, *_), value in registry.items() if name == "toprovar_token_layer_ratio"} == {0.75}


def test_names_are_those_that_prometheus_expects():
    for name, metric in METRICS.items():
        assert re.fullmatch(r"toprovar_[a-z_]+", name)
        assert name.endswith("_total") == (metric.kind == "counter")
        assert not re.search("_ms|_percent|milli", name)


def expressions():
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]


def test_the_dashboard_asks_for_every_metric_and_for_no_other():
    variables = [variable["query"] for variable in DASHBOARD["templating"]["list"]]
    asked = {name for text in expressions() for name in NAME.findall(text)}
    assert asked == METRICS.keys()
    assert set(NAME.findall(json.dumps(variables))) <= METRICS.keys()


def test_the_dashboard_uses_labels_that_its_metrics_have():
    for text in expressions():
        [names] = [set(NAME.findall(text))]
        have = set.union(*(set(METRICS[name].labels) for name in names))
        used = set(re.findall(r"(\w+)=~", text))
        for grouping in re.findall(r"by \((\w+)\)", text):
            used.add(grouping)
        assert used <= have
        assert text.count("(") == text.count(")")
    for panel in DASHBOARD["panels"]:
        legends = " ".join(target["legendFormat"] for target in panel["targets"])
        assert set(re.findall(r"{{(\w+)}}", legends)) <= {"job_name", "worker", "phase"}


def test_the_table_of_the_documentation_has_every_metric_with_its_labels():
    text = (ROOT / "docs/cluster.md").read_text()
    rows = dict(re.findall(r"^\| `(toprovar_\w+)` \| (.*?) \|", text, re.MULTILINE))
    assert rows == {
        name: f"{metric.kind}: {', '.join(f'`{label}`' for label in metric.labels)}"
        for name, metric in METRICS.items()
    }
