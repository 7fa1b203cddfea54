"""However a model is split over worker processes, and however many ranks there are, the answers are the same."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import example_model
from example_model import mounted
from localkube import model
from localkube.paths import CachePaths, cache_root
from small_model import VOCABULARY

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

MEMORY_MIB = 2560
SHAPES: dict[str, dict[str, Any]] = {
    "one": {"executor": "InProcess"},
    "tensor2": {"parallelism": {"tensor": 2}},
    "tensor3": {"parallelism": {"tensor": 3}},
    "pipeline2": {"parallelism": {"pipeline": 2}},
    "data2": {"parallelism": {"data": 2}, "apiServers": 2},
}
ANSWER = 32


def engine(name: str, claim: str, *, uri: str, memory_mib: int, **spec: Any) -> dict[str, Any]:
    """In float32: in bfloat16 sums in another order choose other tokens."""
    container = {"name": "engine", "args": ["--dtype=float32"], "volumeMounts": [{"name": "models", "mountPath": "/models"}]}
    overlay = {"volumes": [mounted(claim)], "containers": [container]}
    return {
        "apiVersion": "enginehouse.dev/v1alpha1",
        "kind": "InferenceEngine",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": uri, "servedName": "m"},
            "executor": "Multiprocess",
            "resources": {"limits": {"memory": f"{memory_mib}Mi"}, "requests": {"cpu": "50m", "memory": "200Mi"}},
            "context": {"maxLength": 512},
            "drain": {"timeoutSeconds": 1},
            "template": {"spec": overlay},
            **spec,
        },
    }


def answers(space: Any, name: str, prompts: list[list[int]], *, tokens: int) -> list[str]:
    found = []
    for prompt in prompts:
        body = {"model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        code, answer = space.post(name, "/v1/completions", body)
        assert code == 200, answer
        found.append(answer["choices"][0]["text"])
    return found


NAMES = [
    ["one", "tensor2", "pipeline2", "data2"],
    # In make test the next test asks for three workers, of a real model.
    pytest.param(["one", "tensor3"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_every_shape_gives_the_tokens_of_one_process(space: Any, small_model: Path, names: list[str]) -> None:
    draw = random.Random(5)
    prompts = [[draw.randrange(VOCABULARY) for _ in range(length)] for length in (1, 7, 33, 90)]
    said: dict[str, list[str]] = {}
    space.apply(*example_model.claim("small", small_model, namespace=space.namespace))
    for name in names:
        space.apply(engine(name, "small", uri="file:///models", memory_mib=MEMORY_MIB, **SHAPES[name]))
        space.wait("Ready", name=name)
        said[name] = answers(space, name, prompts, tokens=ANSWER)
        space.kubectl("delete", f"ie/{name}", "--wait=false")
    assert all(len(text) == ANSWER for text in said["one"])
    assert said == dict.fromkeys(names, said["one"])


def test_a_real_model_on_three_workers_says_what_it_says_in_one_process(space: Any) -> None:
    gguf = model.ensure(CachePaths(cache_root()))
    space.apply(*example_model.volume(space.namespace))
    prompts = [[504, 3575, 282, 4649, 314]]
    said = []
    for name, shape in (("one", SHAPES["one"]), ("three", SHAPES["tensor3"])):
        space.apply(engine(name, "smollm2", uri=f"file:///models/{gguf.name}", memory_mib=4096, **shape))
        space.wait("Ready", name=name)
        said.append(answers(space, name, prompts, tokens=8))
        space.kubectl("delete", f"ie/{name}", "--wait=false")
    assert said[0] == said[1]
