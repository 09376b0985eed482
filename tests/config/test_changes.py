"""What of a new configuration can be in force at once."""

import msgspec

from collector.config import Config, load
from collector.config.changes import changes
from collector.config.load import keys
from tests.config.test_load import SETTINGS


def changed(*dotted: str) -> Config:
    environment = {key.variable: SETTINGS[key.dotted][0] for key in keys() if key.dotted in dotted}
    return load(None, environment, with_credentials=False)


def test_where_nothing_has_changed_nothing_does() -> None:
    found = changes(Config(), Config())
    assert (found.config, found.in_force, found.need_restart) == (Config(), (), ())


def test_a_change_is_in_force_but_for_keys_that_need_a_restart_which_keep_their_value() -> None:
    for key in keys():
        wanted = changed(key.dotted)
        found = changes(Config(), wanted)
        if key.needs_restart:
            assert (found.config, found.in_force, found.need_restart) == (Config(), (), (key.dotted,))
        else:
            assert (found.config, found.in_force, found.need_restart) == (wanted, (key.dotted,), ())


def test_of_many_changes_each_is_told_once_in_the_order_of_the_model_and_no_value_is() -> None:
    found = changes(Config(), changed("upstream.client_secret", "flush.batch_events", "flush.linger", "http.listen"))
    assert found.in_force == ("flush.linger", "upstream.client_secret")
    assert found.need_restart == ("http.listen", "flush.batch_events")
    assert found.config == changed("upstream.client_secret", "flush.linger")
    assert "hunter2" not in repr(found)


def test_where_events_go_elsewhere_after_a_restart_nothing_of_the_way_out_changes_before() -> None:
    running = changed("upstream.client_id", "upstream.client_secret", "gateway.operations")
    found = changes(running, changed("forward.url", "forward.token", "flush.linger"))
    assert found.in_force == ("flush.linger",)
    assert found.need_restart == (
        "upstream.client_id",
        "upstream.client_secret",
        "forward.url",
        "forward.token",
        "gateway.operations",
    )
    assert msgspec.structs.replace(found.config, flush=running.flush) == running
