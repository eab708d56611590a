from __future__ import annotations

from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.v1.core.sched import output

from forkjoin_scheduler.vllm_seam.mends.media_again import send_media_with_each_request


def test_pixels_reach_the_workers_with_a_request_that_starts_behind_them(monkeypatch):
    """If the first assertion fails, vLLM leaves no pixels out any more, and the mend can go."""
    from vllm.multimodal.utils import strip_covered_mm_data

    monkeypatch.setattr(output, "strip_covered_mm_data", strip_covered_mm_data)
    place = PlaceholderRange(offset=0, length=4)
    features = [MultiModalFeatureSpec(MultiModalKwargsItem(), "image", "an image", place)]
    assert output.strip_covered_mm_data(features, 5)[0].data is None
    send_media_with_each_request()
    assert output.strip_covered_mm_data(features, 5, uses_mrope=True) == features
    assert features[0].data is not None
