"""What the alerts are for, and what they are not for: series of a Prometheus, and when they make an alert fire.

The one job: a table. Values are a sample each minute from minute 0, in the notation of Prometheus' tests: `0x3 1+2x2 stale` is
0 0 0 0 1 3 5 and the end of the series, `_x3` three minutes without it.
Not done here: asking Prometheus (`promtool.py`), and whether such series are exported (`tests/charts/test_monitoring.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

Series = dict[str, str]


@dataclass(frozen=True)
class Fires:
    """The alert is silent before this minute, and is told then in these words, with these labels."""

    story: str
    series: Series
    minute: int
    labels: dict[str, str]
    summary: str
    description: str


@dataclass(frozen=True)
class Silent:
    """The nearest thing that is not meant: no minute of the first `minutes` has the alert."""

    story: str
    series: Series
    minutes: int = 60


def operator(metric: str, *, pod: str = "a", **labels: str) -> str:
    return _series(metric, {"namespace": "enginehouse-system", "pod": pod, **labels})


def condition(condition: str, reason: str, *, pod: str = "a") -> str:
    """Of the engine `ml/chat`, as the operator in this pod tells it."""
    labels = {"namespace": "ml", "engine": "chat", "condition": condition, "reason": reason}
    return _series("enginehouse_engine_condition", {"pod": pod, **labels})


def replica(metric: str, *, replica: str = "chat-0", **labels: str) -> str:
    """Of the engine `ml/chat`."""
    return _series(metric, {"namespace": "ml", "engine": "chat", "replica": replica, **labels})


def requests(**values_by_code: str) -> Series:
    """The operator's to the Kubernetes API; `c403` is code 403."""
    name = "enginehouse_operator_api_requests_total"
    return {operator(name, verb="patch", kind="Pod", code=code[1:]): values for code, values in values_by_code.items()}


def responses(*, path: str = "/v1/completions", **values_by_status: str) -> Series:
    """An engine's; `s503` is status 503."""
    name = "enginehouse_http_responses_total"
    return {replica(name, api_server="0", path=path, status=status[1:]): values for status, values in values_by_status.items()}


def told_late(values: str, *, seconds: float, noticed_by: str = "monitor") -> Series:
    """The buckets of a histogram in which every death took as many seconds."""
    name, bounds = "enginehouse_death_to_status_seconds_bucket", (0.1, 10, 20, 60, 300, float("inf"))
    return {
        operator(name, noticed_by=noticed_by, le=f"{bound}".replace("inf", "+Inf")): values if seconds <= bound else "0x60"
        for bound in bounds
    }


def _series(metric: str, labels: dict[str, str]) -> str:
    return f"{metric}{{" + ", ".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


LEADER = "enginehouse_operator_leader"
PASSES = "enginehouse_operator_passes_total"
QUEUE = "enginehouse_operator_queue_depth"
FAILURES = "enginehouse_failures_total"
WAITING = "enginehouse_requests_waiting"
ML_CHAT = {"namespace": "ml", "engine": "chat"}
CRITICAL, WARNING = {"severity": "critical"}, {"severity": "warning"}

CASES: dict[str, tuple[Fires | Silent, ...]] = {
    "EnginehouseNoOperatorLeads": (
        Fires(
            "the one that led is gone, and the other one stands by",
            {operator(LEADER): "1x3 stale", operator(LEADER, pod="b"): "0x20"},
            minute=9,
            labels=CRITICAL,
            summary="No Enginehouse operator leads.",
            description="Engines serve on and bring ranks back by themselves, but no replica is replaced, scaled or rolled out, "
            "and no status is written.",
        ),
        Fires(
            "nothing is scraped",
            {},
            minute=5,
            labels=CRITICAL,
            summary="No Enginehouse operator leads.",
            description="Engines serve on and bring ranks back by themselves, but no replica is replaced, scaled or rolled out, "
            "and no status is written.",
        ),
        Silent(
            "another one takes over within five minutes",
            {operator(LEADER): "1x3 stale", operator(LEADER, pod="b"): "0x7 1x60"},
        ),
    ),
    "EnginehousePassMeetsABug": (
        Fires(
            "one pass",
            {operator(PASSES, result="error"): "0x5 1x20", operator(PASSES, result="settled"): "0+9x25"},
            minute=6,
            labels=WARNING,
            summary="A pass of the Enginehouse operator met a bug.",
            description="1 passes were given up in 15 minutes. The engine concerned is not looked after; "
            "the operator's log names it.",
        ),
        Silent(
            "passes that were refused or got no answer",
            {operator(PASSES, result="refused"): "0+1x60", operator(PASSES, result="unavailable"): "0+1x60"}
            | {operator(PASSES, result="error"): "0x60"},
        ),
        Silent(
            "a new process counts from 0, whatever the last one met long ago",
            {operator(PASSES, result="error"): "3x20 stale", operator(PASSES, result="error", pod="b"): "_x22 0x60"},
        ),
    ),
    "EnginehouseKubernetesApiFails": (
        Fires(
            "one in ten is refused or has no answer",
            requests(c200="0+54x20", c0="0+1x20", c401="0+1x20", c403="0+1x20", c429="0+1x20", c500="0+1x20", c503="0+1x20"),
            minute=11,
            labels=WARNING,
            summary="The Kubernetes API refuses the Enginehouse operator, or does not answer.",
            description="10% of its requests came to nothing.",
        ),
        Silent("one in twenty-five", requests(c200="0+96x60", c503="0+4x60")),
        Silent("somebody was faster, or the object is gone", requests(c200="0+2x60", c404="0+9x60", c409="0+9x60")),
        Silent("one bad minute of an operator that asks little", requests(c200="0x5 5x55", c503="0x5 5x55")),
    ),
    "EnginehouseQueueNeverEmpty": (
        Fires(
            "it was empty for the last time at minute 3",
            {operator(QUEUE): "0x3 2x4 3x30"},
            minute=23,
            labels=WARNING | {"namespace": "enginehouse-system", "pod": "a"},
            summary="The Enginehouse operator does not keep up.",
            description="For 15 minutes engines have waited for a pass, in the last five never fewer than 3.",
        ),
        Fires(
            "an operator that starts with work and does not get it done",
            {operator(QUEUE): "_x2 3x30"},
            minute=17,
            labels=WARNING | {"namespace": "enginehouse-system", "pod": "a"},
            summary="The Enginehouse operator does not keep up.",
            description="For 15 minutes engines have waited for a pass, in the last five never fewer than 3.",
        ),
        Silent("an operator that starts with 200 engines and is through after ten minutes", {operator(QUEUE): "200-20x10 0x50"}),
        Silent("it is empty once in a quarter of an hour", {operator(QUEUE): "3x13 0 3x13 0 3x13 0 3x13 0"}),
    ),
    "EnginehouseEngineUnavailable": (
        Fires(
            "it served, as the last operator told; reasons come and go",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale",
                condition("Ready", "AllReplicasServe"): "1x10 stale",
                condition("Available", "NoReplicaServes", pod="b"): "_x12 0x30",
                condition("Ready", "Starting", pod="b"): "_x12 0x2 stale",
                condition("Ready", "RestartDelayed", pod="b"): "_x15 0x30",
            },
            minute=17,
            labels=CRITICAL | ML_CHAT,
            summary="Engine ml/chat serves nobody any more.",
            description="It served within the last day, and none of its replicas has for 5 minutes.",
        ),
        Fires(
            "it was suspended, is wanted again and takes more than half an hour to load",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale",
                condition("Ready", "AllReplicasServe"): "1x10 stale",
                condition("Available", "NoReplicaServes"): "_x11 0x90",
                condition("Ready", "Suspended"): "_x11 1x18 stale",
                condition("Ready", "Starting"): "_x30 0x60",
            },
            minute=64,
            labels=CRITICAL | ML_CHAT,
            summary="Engine ml/chat serves nobody any more.",
            description="It served within the last day, and none of its replicas has for 5 minutes.",
        ),
        Silent(
            "it starts for the first time",
            {condition("Available", "NoReplicaServes"): "0x60", condition("Ready", "Starting"): "0x60"},
        ),
        Silent(
            "one of its replicas serves on",
            {
                condition("Available", "SomeReplicasServe"): "1x60",
                condition("Ready", "AllReplicasServe"): "1x10 stale",
                condition("Ready", "RestartDelayed"): "_x11 0x60",
            },
        ),
        Silent(
            "it had no replicas, is wanted again, and serves after half an hour",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale _x48 1x10",
                condition("Ready", "AllReplicasServe"): "1x10 stale _x48 1x10",
                condition("Available", "NoReplicaServes"): "_x11 0x47 stale",
                condition("Ready", "ZeroReplicas"): "_x11 1x18 stale",
                condition("Ready", "Starting"): "_x30 0x28 stale",
            },
        ),
        Silent(
            "it is suspended",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale",
                condition("Ready", "AllReplicasServe"): "1x10 stale",
                condition("Available", "NoReplicaServes"): "_x11 0x60",
                condition("Ready", "Suspended"): "_x11 1x60",
            },
        ),
        Silent(
            "it serves again after five minutes",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale _x4 1x60",
                condition("Ready", "AllReplicasServe"): "1x10 stale _x4 1x60",
                condition("Available", "NoReplicaServes"): "_x11 0x4 stale",
                condition("Ready", "Starting"): "_x11 0x4 stale",
            },
        ),
        Silent(
            "it served the day before yesterday, is wanted again and takes long to load",
            {
                condition("Available", "SomeReplicasServe"): "1x10 stale",
                condition("Available", "NoReplicaServes"): "_x11 0x1500",
                condition("Ready", "Suspended"): "_x11 1x1439 stale",
                condition("Ready", "Starting"): "_x1451 0x60",
            },
            minutes=1500,
        ),
    ),
    "EnginehouseEngineNotReady": (
        Fires(
            "half an hour with one reason after the other",
            {condition("Ready", "Starting"): "0x14 stale", condition("Ready", "Unschedulable"): "_x15 0x60"},
            minute=30,
            labels=WARNING | ML_CHAT,
            summary="Engine ml/chat is not Ready.",
            description="For 30 minutes it has had fewer replicas or ranks than its spec asks for, or older ones.",
        ),
        Silent(
            "a rollout of half an hour",
            {condition("Ready", "RollingOut"): "0x29 stale", condition("Ready", "AllReplicasServe"): "_x30 1x60"},
        ),
        Silent("it is suspended", {condition("Available", "NoReplicaServes"): "0x60", condition("Ready", "Suspended"): "1x60"}),
    ),
    "EnginehouseEngineStalled": (
        Fires(
            "its budget is spent",
            {condition("Stalled", "RestartBudgetSpent"): "_x3 1x20", condition("Ready", "RestartBudgetSpent"): "_x3 0x20"},
            minute=5,
            labels=WARNING | ML_CHAT | {"reason": "RestartBudgetSpent"},
            summary="Engine ml/chat waits for a person, RestartBudgetSpent.",
            description="It will not go on by itself. What still serves, serves on.",
        ),
        Silent(
            "the spec was mended at once",
            {condition("Stalled", "InvalidSpec"): "_x3 1x1 stale", condition("Ready", "AllReplicasServe"): "_x5 1x60"},
        ),
        Silent(
            "it goes on by itself",
            {
                condition("Available", "SomeReplicasServe"): "1x60",
                condition("Ready", "RestartDelayed"): "0x60",
                condition("Reconciling", "RestartDelayed"): "1x60",
            },
        ),
    ),
    "EnginehouseMonitorDown": (
        Fires(
            "of an engine that serves",
            {condition("Ready", "MonitorDown"): "1x20"},
            minute=10,
            labels=WARNING | ML_CHAT,
            summary="A monitor of engine ml/chat does not run.",
            description="Nobody reports deaths in its pod. An engine that serves, serves on.",
        ),
        Fires(
            "of an engine that does not start without it",
            {condition("Ready", "MonitorDown"): "0x20"},
            minute=10,
            labels=WARNING | ML_CHAT,
            summary="A monitor of engine ml/chat does not run.",
            description="Nobody reports deaths in its pod. An engine that serves, serves on.",
        ),
        Silent(
            "the kubelet brought it back",
            {condition("Ready", "MonitorDown"): "1x9 stale", condition("Ready", "AllReplicasServe"): "_x10 1x60"},
        ),
        Silent("an engine that is not Ready for another reason", {condition("Ready", "Unschedulable"): "0x60"}),
    ),
    "EnginehouseFailuresRepeat": (
        Fires(
            "three before another operator leads and three after",
            {
                operator(FAILURES, **{"class": "OutOfMemory"}): "0+1x3 3x10 stale",
                operator(FAILURES, pod="b", **{"class": "OutOfMemory"}): "_x50 0+1x3 3x60",
            },
            minute=53,
            labels=WARNING | {"class": "OutOfMemory"},
            summary="Engines fail again and again, OutOfMemory.",
            description="6 failures of this class in an hour.",
        ),
        Silent(
            "one every 13 minutes: five in an hour",
            {operator(FAILURES, **{"class": "OutOfMemory"}): "40x12 41x12 42x12 43x12 44x12 45x12 46x12 47x12"},
            minutes=104,
        ),
        Silent(
            "six, each of another class",
            {
                operator(FAILURES, **{"class": name}): "0x5 1x60"
                for name in ("Exit", "Exception", "Hang", "Signal", "Evicted", "NodeLost")
            },
        ),
    ),
    "EnginehouseDeathsAreToldLate": (
        Fires(
            "one was told after 25 seconds",
            told_late("0x5 1x60", seconds=25),
            minute=6,
            labels=WARNING,
            summary="Deaths show in the status of their engine late.",
            description="From the notice of a death to the status it took 59.6s (p99 of an hour).",
        ),
        Silent("one was told after 15 seconds", told_late("0x5 1x60", seconds=15)),
        Silent("nobody died", told_late("1x60", seconds=25)),
        Silent(
            "one in two hundred",
            told_late("0x5 200x60", seconds=0.05) | told_late("0x5 1x60", seconds=25, noticed_by="kubernetes"),
        ),
    ),
    "EnginehouseRequestsFail": (
        Fires(
            "one in ten, of any status from 500 on",
            responses(s200="0+90x20", s500="0+4x20", s503="0+6x20"),
            minute=6,
            labels=WARNING | ML_CHAT,
            summary="Engine ml/chat fails requests.",
            description="10% of its answers are errors of the engine.",
        ),
        Silent("one in twenty-five", responses(s200="0+96x60", s503="0+4x60")),
        Silent("errors of clients, and too much that waits", responses(s200="0+2x60", s400="0+9x60", s429="0+9x60")),
        Silent("probes of an engine that loads", responses(s200="0x60") | responses(path="/health", s503="0+6x60")),
        Silent("one bad minute of an engine that is asked little", responses(s200="0x5 5x55", s503="0x5 5x55")),
    ),
    "EnginehouseRequestsWait": (
        Fires(
            "one replica's queue was empty for the last time at minute 3, the other's always is",
            {replica(WAITING): "0x3 2x4 3x40", replica(WAITING, replica="chat-1"): "0x50"},
            minute=23,
            labels=WARNING | ML_CHAT,
            summary="Requests to engine ml/chat wait all the time.",
            description="Its queue has not been empty for 15 minutes, in the last five never fewer than 3 waited.",
        ),
        Silent("it is empty once in a quarter of an hour", {replica(WAITING): "3x13 0 3x13 0 3x13 0 3x13 0"}),
        Silent("a new replica that works off what waited", {replica(WAITING): "_x5 200-20x10 0x50"}),
    ),
}
