"""`python -m quantize.device_info`: what MLX says of the device that it runs on, as JSON on stdout."""

from __future__ import annotations

from typing import Any

from quantize.printable import print_json


def device_info() -> dict[str, Any]:
    """Numbers and texts; sizes in bytes."""
    import mlx.core as mx

    return {name: value for name, value in mx.device_info().items() if isinstance(value, int | float | str)}


if __name__ == "__main__":
    print_json(device_info())
