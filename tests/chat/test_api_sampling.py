"""Whose default holds for what a request leaves out: the request's own, then models.yml's, then the model's."""

from __future__ import annotations

import pytest
from quintet_chat.api.sampling import SamplingFields
from quintet_chat.protocol import Event
from quintet_common.errors import ApiError
from quintet_common.models_yml import ModelSpec, SamplingDefaults
from quintet_common.worker.process import Worker


@pytest.fixture
def worker() -> Worker[Event]:
    sampling = SamplingDefaults(top_p=0.5, max_tokens=64)
    spec = ModelSpec(id="m", kind="chat", path="x", sampling=sampling)
    worker: Worker[Event] = Worker(spec, "never:started", Event)
    worker.info = {"sampling": {"temperature": 0.2, "top_p": 0.9}}
    return worker


def test_the_request_wins_over_models_yml_and_that_over_the_model(worker: Worker[Event]) -> None:
    chosen = SamplingFields(top_k=5).sampling(worker, None, None)
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.max_tokens) == (0.2, 0.5, 5, 64)
    chosen = SamplingFields(temperature=1, top_p=0.7).sampling(worker, 8, None)
    assert (chosen.temperature, chosen.top_p, chosen.max_tokens) == (1, 0.7, 8)


def test_min_tokens_above_the_limit_are_refused_also_when_the_limit_is_a_default(worker: Worker[Event]) -> None:
    with pytest.raises(ApiError, match="min_tokens"):
        SamplingFields(min_tokens=65).sampling(worker, None, None)
