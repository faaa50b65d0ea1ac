"""Metrics say what is true, under names that the dashboard knows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import urllib3
from live_stack import LiveStack, free_port, until
from prometheus_client.parser import text_string_to_metric_families
from web_stand import WebServer

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


def samples(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values by name and by the values of the labels."""
    values: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            values.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return values


def test_a_scrape_says_what_there_is(web: WebServer, stack: LiveStack) -> None:
    assert web.search(text="shoe", limit=2).status == 200
    assert web.send("DELETE", "/v1/products/nothing").status == 404
    assert web.send("INVENTED", "/v1/jobs").status == 405
    answer = web.get("/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    values = samples(answer.body.decode())
    assert all(name.startswith("imgrec_") for name in values)
    assert values["imgrec_jobs"][("published",)] == 1
    assert values["imgrec_images_total"][("embedded",)] == 12
    assert values["imgrec_index_images"][()] == 12
    assert set(values["imgrec_source_up"].values()) == {1.0}
    workers = {("fetch",): 0, ("embed",): 1, ("index",): 1, ("query",): 1}
    assert values["imgrec_workers"] == workers
    assert values["imgrec_queue_messages"] == dict.fromkeys(workers, 0)
    assert values["imgrec_query_seconds_count"][("imgrec.query_image",)] == 1
    requests = values["imgrec_http_request_seconds_count"]
    assert requests[("POST", "/v1/search", "200")] == 1
    assert requests[("DELETE", "/v1/products/{product_id}", "404")] == 1
    assert requests[("other", "/v1/jobs", "405")] == 1


def test_the_age_of_a_message_that_nobody_takes_grows(web: WebServer, stack: LiveStack) -> None:
    for process in stack.processes[:3]:  # all workers
        process.terminate()
        process.wait()
    stack.imgrec("query", "--text", "shoe")

    def age() -> float:
        values = samples(web.get("/metrics").body.decode())
        assert values["imgrec_queue_messages"][("query",)] == 1
        return values["imgrec_queue_oldest_seconds"][("query",)]

    until(lambda: age() > 1.0, "the message gets older", 30)
    port = free_port()
    stack.worker("query", METRICS_PORT=str(port))
    url = f"http://127.0.0.1:{port}/metrics"

    def answered() -> bool:
        try:
            text = urllib3.request("GET", url, retries=False).data.decode()
        except urllib3.exceptions.HTTPError:
            return False
        return samples(text).get("imgrec_worker_query_seconds_count", {}).get(("total",)) == 1

    until(answered, "the worker serves its metrics")


def test_the_dashboard_names_only_metrics_that_there_are() -> None:
    root = DASHBOARD.parents[1]
    sources = [root / "web" / "metrics.py", root / "web" / "process_metrics.py"]
    sources.append(root / "workers" / "metrics.py")
    code = "".join(file.read_text() for file in sources)
    names = set(re.findall(r'"(imgrec_[a-z_]+)"', code))
    used = set(re.findall(r"imgrec_[a-z_]+", DASHBOARD.read_text()))
    assert len(used) > 20
    for name in used:
        bare = re.sub(r"_(bucket|count|sum|total)$", "", name)
        assert name in names or bare in names, name
    unused = names - used - {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in used}
    assert unused == set(), "the dashboard shows every metric"
    titles = [panel["title"] for panel in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(titles) == len(set(titles))
