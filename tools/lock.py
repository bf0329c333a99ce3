"""Prints requirements.lock: `name==version` of everything in this environment but configi itself.

The few packages that exist for one system only carry a marker; the lock was made on Linux, so what only macOS installs
is added here, in the version that matches.
"""

from __future__ import annotations

from importlib.metadata import distributions

_LINUX = {"mlx-cpu"}
_NOT_LOCKED = {"configi-mlx", "pip", "setuptools", "wheel"}


def main() -> None:
    versions = {d.metadata["Name"]: d.version for d in distributions()}
    versions = {name: version for name, version in versions.items() if name.lower() not in _NOT_LOCKED}
    lines = [
        f"{name}=={version}" + ('; sys_platform == "linux"' if name in _LINUX else "")
        for name, version in versions.items()
    ]
    lines.append(f'mlx-metal=={versions["mlx"]}; sys_platform == "darwin"')
    print("\n".join(sorted(lines, key=str.lower)))


if __name__ == "__main__":
    main()
