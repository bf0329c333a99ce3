"""The `configi` command. Exit codes: 0 done, 1 failed (one sentence on stderr), 2 usage.

Imports are inside the commands: `configi --help` should not wait for a web framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quantize.commands import add_commands
from quantize.errors import QuantizeError
from quantize.options import JsonOption
from quantize.outcome import run
from quantize.printable import echo
from server import __version__
from server.errors import SetupError

if TYPE_CHECKING:
    from server.settings.types import ModelSettings, Settings

cli = typer.Typer(
    name="configi",
    help="Local inference server for Apple Silicon: Config-I quantized MLX models behind the OpenAI API.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[Path | None, typer.Option("--config", help="config.toml to use.", show_default=False)]
HostOption = Annotated[str | None, typer.Option("--host", help="Address to listen on.", show_default=False)]
PortOption = Annotated[int | None, typer.Option("--port", help="TCP port.", show_default=False)]


@cli.command()
def serve(
    config: ConfigOption = None,
    host: HostOption = None,
    port: PortOption = None,
    model: Annotated[str | None, typer.Option(help="Model id, or a folder with an MLX model.")] = None,
) -> None:
    """Serve the configured models until Ctrl-C."""
    from server.settings.loading import load_settings

    settings = load_settings(config, {"server": _given(host=host, port=port)})
    if model is not None:
        settings = _with_default(settings, model)
    _run(settings, demo=False)


@cli.command()
def demo(
    port: PortOption = None,
    exit_after_reply: Annotated[bool, typer.Option(help="Stop after the first reply.")] = False,
) -> None:
    """Prepare a small embedded model, answer one question with it, and keep serving it."""
    from server.cli.demo import DEMO_MODEL
    from server.settings.loading import load_settings

    settings = load_settings(None, {"server": _given(port=port)})
    lifecycle = settings.lifecycle.model_copy(update={"default_model": DEMO_MODEL.id, "load_at_start": True})
    # The terminal is for the answer; the log shows only what goes wrong, unless more was asked for.
    log = settings.log.model_copy(update={"level": "warning"}) if settings.log.level == "info" else settings.log
    settings = settings.model_copy(update={"models": [DEMO_MODEL], "lifecycle": lifecycle, "log": log})
    if settings.server.key_digests and settings.server.own_key is None:
        raise SetupError("configi demo asks its own server: it needs a key of server.api_keys that is not a hash.")
    _run(settings, demo=True, exit_after_reply=exit_after_reply)


@cli.command()
def status(
    config: ConfigOption = None, host: HostOption = None, port: PortOption = None, json: JsonOption = False
) -> None:
    """Show what the running server is doing."""
    from server.cli.status_report import report
    from server.settings.loading import address_of_a_stranger, load_settings

    flags = {"server": _given(host=host, port=port)}
    settings = load_settings(config, flags)
    if settings.server.own_key is not None and address_of_a_stranger(config, flags, settings):
        raise SetupError(
            "The key of your settings is not sent to the address that config.toml in this folder names; to mean that "
            "address, give --config config.toml, or --host and --port."
        )
    report(settings.server, as_json=json)


@cli.command()
def models(config: ConfigOption = None, json: JsonOption = False) -> None:
    """List the configured models and whether their files are on this machine."""
    from server.cli.models_report import report
    from server.settings.loading import load_settings

    report(load_settings(config, {}), as_json=json)


@cli.command()
def doctor(
    config: ConfigOption = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder to measure with; else one on this machine.", show_default=False)
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="For measuring; 0 measures nothing.")] = 30,
    json: JsonOption = False,
) -> None:
    """Tell what this machine is, which models fit, and what a forward pass costs."""
    from server.cli.doctor import report
    from server.settings.loading import load_settings

    if model is not None and not (model / "config.json").is_file():
        raise SetupError(f"--model {model}: the folder has no config.json, so it is not an MLX model.")
    report(load_settings(config, {}), model, seconds, as_json=json)


# plan, build, verify and eval.
add_commands(cli)


@cli.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        echo(f"configi {__version__}")
        raise typer.Exit


def main() -> None:
    """The entry point: what a user can cause is one sentence, never a traceback."""
    run("configi", cli, (SetupError, QuantizeError))


def _run(settings: Settings, *, demo: bool, exit_after_reply: bool = False) -> None:
    """Bind first, so that a port in use costs nothing; then serve until a signal arrives."""
    import functools
    import gc

    # Nothing that imports make is garbage, and looking through all of it again and again is a sixth of the start.
    # `listen.run` turns the collector on.
    gc.disable()
    from server import logs
    from server.app import Companion, create_app
    from server.cli import loopback
    from server.cli.demo import Demo
    from server.cli.terminal import ServerConsole, show_progress
    from server.http import listen

    logs.configure(settings.log)
    sockets = listen.bind(settings.server)
    address = loopback.address(*sockets[0].getsockname()[:2])
    out = ServerConsole()
    out.print(f"configi {__version__} on {address}")
    companions: list[Companion] = [functools.partial(show_progress, out)]
    run_demo = Demo(out, address, settings.server.own_key, exit_after_reply=exit_after_reply)
    if demo:
        companions.append(run_demo)
    configi = create_app(settings, companions=companions)
    listen.run(configi.asgi, sockets, settings.server, configi.generation.drain, configi.generation.end)
    if run_demo.failed:
        raise typer.Exit(1)


def _given(**flags: Any) -> dict[str, Any]:
    """The flags that were set."""
    return {name: value for name, value in flags.items() if value is not None}


def _with_default(settings: Settings, name: str) -> Settings:
    """`--model`: the id of a configured model, else a folder, else an alias, becomes the default. A folder takes the
    aliases of the default that it replaces: who serves one model and asks for gpt-4o means that one."""
    from server.errors import ModelNotFound
    from server.models.catalog import Catalog

    entries = list(settings.models)
    folder = Path(name).expanduser()
    # A folder before the aliases: a folder gpt-oss-mlx here is meant rather than the model that gpt-* stands for.
    if folder.is_dir() and name not in [entry.id for entry in entries]:
        replaced = Catalog(settings).default
        entry = _local(folder.resolve(), replaced.aliases)
        kept = [other if other is not replaced else other.model_copy(update={"aliases": []}) for other in entries]
        entries = [entry, *(other for other in kept if other.id != entry.id)]
    else:
        try:
            entry = Catalog(settings).resolve(name)
        except ModelNotFound as error:
            raise SetupError(f"--model {name}: neither a configured model nor a folder. {error.message}") from None
    lifecycle = settings.lifecycle.model_copy(update={"default_model": entry.id})
    return settings.model_copy(update={"models": entries, "lifecycle": lifecycle})


def _local(folder: Path, aliases: list[str]) -> ModelSettings:
    from server.settings.types import ModelSettings

    if not (folder / "config.json").is_file():
        raise SetupError(f"--model {folder}: the folder has no config.json, so it is not an MLX model.")
    # Raises where the name is not text: it would be one in no answer and no message between the processes.
    str(folder).encode()
    return ModelSettings(id=folder.name, aliases=aliases, acquire="local", path=folder)
