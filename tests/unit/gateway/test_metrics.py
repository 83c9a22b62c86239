from __future__ import annotations

from gateway.metrics import MAX_LABEL_VALUES, Metrics

NAMES = {
    "tandem_requests",
    "tandem_ttft_seconds",
    "tandem_itl_seconds",
    "tandem_overhead_seconds",
    "tandem_in_flight",
    "tandem_queue_depth",
    "tandem_replica_up",
    "tandem_feedback",
    "tandem_publish_seconds",
    "tandem_alias_generation",
    "tandem_records_dropped",
    "tandem_replica_ejected",
    "tandem_retries",
}


def test_names_are_those_of_the_contract() -> None:
    assert {metric.name for metric in Metrics().registry.collect()} == NAMES


def test_label_values_beyond_the_cap_are_other() -> None:
    metrics = Metrics()
    for number in range(MAX_LABEL_VALUES + 5):
        metrics.count_request(f"model-{number}", "v", 200)
    text = metrics.render().decode()
    assert text.count("tandem_requests_total{") == MAX_LABEL_VALUES + 1
    assert 'tandem_requests_total{model="other",status="200",version="v"} 5.0' in text
    metrics.count_request("model-0", "v", 200)
    assert 'tandem_requests_total{model="model-0",status="200",version="v"} 2.0' in metrics.render().decode()
