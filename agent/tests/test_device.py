"""The key of a device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from shala_agent.device import Device


def test_two_who_make_the_key_at_once_are_one_device(tmp_path):
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: Device(tmp_path / "state/device.key").id, range(32)))
    assert len({*made, Device(tmp_path / "state/device.key").id}) == 1
