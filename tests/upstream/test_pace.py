from collector.contract.models import EXPORT_REQUESTS_PER_SECOND
from collector.upstream.pace import export_limiter


def test_a_request_that_is_held_up_for_a_moment_brings_no_other_over_the_limit() -> None:
    limiter = export_limiter()
    held_up_seconds = 0.09
    first_to_21st_seconds = EXPORT_REQUESTS_PER_SECOND * limiter.time_period / limiter.max_rate
    assert limiter.max_rate == 1
    assert first_to_21st_seconds - held_up_seconds >= 1
