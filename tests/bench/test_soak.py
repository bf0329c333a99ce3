"""What a soak is judged by."""

from __future__ import annotations

from bench import soak


def test_a_soak_in_which_the_disk_was_never_full_has_missed_its_purpose() -> None:
    log = soak.Log(waits=[0.1])
    log.said |= dict.fromkeys(log.said, 1)
    assert soak.result(log, "gemma", 30).met
    log.said["are not kept on disk"] = 0
    assert not soak.result(log, "gemma", 30).met
