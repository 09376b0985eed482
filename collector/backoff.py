"""How long to wait before trying again (pure)."""


def delay_seconds(
    attempt: int,
    *,
    base_seconds: float,
    maximum_seconds: float,
    random_fraction: float,
    retry_after_seconds: float | None = None,
) -> float:
    """Seconds to wait after the `attempt`-th failure in a row (1 is the first).

    Exponential with full jitter: uniform between 0 and min(maximum, base * 2^(attempt - 1)), where `random_fraction`
    in [0, 1) is the caller's draw; full jitter spreads a herd of clients best. A Retry-After is a floor, even above
    the maximum, and the jitter comes on top of it, so that all who were told "5 s" do not return in the same instant.
    """
    ceiling = min(maximum_seconds, base_seconds * 2.0 ** min(attempt - 1, 63))
    return (retry_after_seconds or 0.0) + ceiling * random_fraction
