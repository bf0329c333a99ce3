"""Coding agents: what is installed of each, and how it is run once, without a person, against a server.

In words of a command, an environment or a file, `{base}` is the server's address, `{model}` the model that it serves,
`{key}` its key, `{home}` the agent's home and `{task}` what it is asked.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.client_environments import Environment

# On a busy machine some take minutes to import themselves.
_RUN_S = 600


@dataclass(frozen=True)
class Agent:
    """`packages`: of npm, or with `python` of PyPI; the version of the first counts. `files`: below its home. `first`:
    commands that are run before. `has_tools`: it runs commands for the model."""

    name: str
    api: str
    packages: tuple[str, ...]
    command: tuple[str, ...]
    python: bool = False
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    first: tuple[tuple[str, ...], ...] = ()
    has_tools: bool = True
    # False: it cannot be given one.
    sends_key: bool = True


_OPENAI = {"OPENAI_API_BASE": "{base}/v1", "OPENAI_BASE_URL": "{base}/v1", "OPENAI_API_KEY": "{key}"}
_CODEX = """\
model = "{model}"
model_provider = "local"
[model_providers.local]
name = "local"
base_url = "{base}/v1"
wire_api = "responses"
env_key = "OPENAI_API_KEY"
"""


def _opencode(package: str) -> Mapping[str, str]:
    """With one of the AI SDK's providers."""
    model = {"name": "local", "tool_call": True, "limit": {"context": 100000, "output": 4000}}
    options = {"baseURL": "{base}/v1", "apiKey": "{key}"}
    provider = {"npm": package, "options": options, "models": {"{model}": model}}
    settings = {"provider": {"local": provider}, "autoupdate": False, "permission": {"bash": "allow"}}
    return {".config/opencode/opencode.json": json.dumps(settings)}


def _pi(api: str, base: str) -> Mapping[str, str]:
    models = [{"id": "{model}", "contextWindow": 100000, "maxTokens": 4000}]
    provider = {"baseUrl": base, "api": api, "apiKey": "{key}", "models": models}
    return {".pi/agent/models.json": json.dumps({"providers": {"local": provider}})}


_OPENCODE_RUN = {
    "packages": ("opencode-ai",),
    "command": ("opencode", "run", "-m", "local/{model}", "{task}"),
    "env": {"OPENCODE_DISABLE_MODELS_FETCH": "1"},
}
_PI_RUN = {
    "packages": ("@mariozechner/pi-coding-agent",),
    "command": ("pi", "-p", "--provider", "local", "--model", "{model}", "--no-session", "{task}"),
}
_CONTINUE = """\
name: local
version: 0.0.1
schema: v1
models:
  - name: local
    provider: openai
    model: {model}
    apiBase: {base}/v1
    apiKey: {key}
    roles: [chat]
    capabilities: [tool_use]
"""
_COPILOT = {"COPILOT_OFFLINE": "true", "COPILOT_MODEL": "{model}", "COPILOT_PROVIDER_API_KEY": "{key}"}
_COPILOT_COMMAND = ("copilot", "-p", "{task}", "--allow-all-tools", "-s")
_NANOCODER = {
    "nanocoder": {"providers": [{"name": "local", "baseUrl": "{base}/v1", "apiKey": "{key}", "models": ["{model}"]}]}
}

AGENTS = (
    Agent(
        "Codex",
        "responses",
        ("@openai/codex",),
        ("codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "{task}"),
        env=_OPENAI,
        files={".codex/config.toml": _CODEX},
    ),
    Agent(
        "Codex --oss",
        "responses",
        ("@openai/codex",),
        (
            "codex",
            "exec",
            "--oss",
            "--local-provider",
            "lmstudio",
            "-m",
            "{model}",
            "--skip-git-repo-check",
            "--dangerously-bypass-approvals-and-sandbox",
            "{task}",
        ),
        env=_OPENAI | {"CODEX_OSS_BASE_URL": "{base}/v1"},
        sends_key=False,
    ),
    Agent(
        "Claude Code",
        "messages",
        ("@anthropic-ai/claude-code",),
        ("claude", "-p", "{task}", "--allowedTools", "Bash"),
        env={
            "ANTHROPIC_BASE_URL": "{base}",
            "ANTHROPIC_AUTH_TOKEN": "{key}",
            "ANTHROPIC_MODEL": "{model}",
            "ANTHROPIC_SMALL_FAST_MODEL": "{model}",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        },
    ),
    Agent("opencode", "chat", files=_opencode("@ai-sdk/openai-compatible"), **_OPENCODE_RUN),
    Agent("opencode", "responses", files=_opencode("@ai-sdk/openai"), **_OPENCODE_RUN),
    Agent("opencode", "messages", files=_opencode("@ai-sdk/anthropic"), **_OPENCODE_RUN),
    Agent(
        "Qwen Code",
        "chat",
        ("@qwen-code/qwen-code",),
        ("qwen", "--auth-type", "openai", "-m", "{model}", "-y", "-p", "{task}"),
        env=_OPENAI,
    ),
    Agent(
        "Cline",
        "chat",
        ("cline",),
        ("cline", "-P", "openai-compatible", "-m", "{model}", "-t", "60", "{task}"),
        first=(("cline", "auth", "-p", "openai-compatible", "-k", "{key}", "-m", "{model}", "-b", "{base}/v1"),),
    ),
    Agent(
        "Copilot CLI",
        "chat",
        ("@github/copilot",),
        _COPILOT_COMMAND,
        env=_COPILOT | {"COPILOT_PROVIDER_BASE_URL": "{base}/v1"},
    ),
    Agent(
        "Copilot CLI",
        "responses",
        ("@github/copilot",),
        _COPILOT_COMMAND,
        env=_COPILOT | {"COPILOT_PROVIDER_BASE_URL": "{base}/v1", "COPILOT_PROVIDER_WIRE_API": "responses"},
    ),
    Agent(
        "Copilot CLI",
        "messages",
        ("@github/copilot",),
        _COPILOT_COMMAND,
        env=_COPILOT | {"COPILOT_PROVIDER_BASE_URL": "{base}", "COPILOT_PROVIDER_TYPE": "anthropic"},
    ),
    Agent("pi", "chat", files=_pi("openai-completions", "{base}/v1"), **_PI_RUN),
    Agent("pi", "responses", files=_pi("openai-responses", "{base}/v1"), **_PI_RUN),
    Agent("pi", "messages", files=_pi("anthropic-messages", "{base}"), **_PI_RUN),
    Agent(
        "Continue CLI",
        "chat",
        ("@continuedev/cli",),
        ("cn", "-p", "{task}", "--config", "{home}/config.yaml", "--auto"),
        files={"config.yaml": _CONTINUE},
    ),
    Agent(
        "nanocoder",
        "chat",
        ("@nanocollective/nanocoder",),
        (
            "nanocoder",
            "--mode",
            "yolo",
            "--trust-directory",
            "--provider",
            "local",
            "--model",
            "{model}",
            "run",
            "{task}",
        ),
        files={"work/agents.config.json": json.dumps(_NANOCODER)},
    ),
    Agent(
        "aider",
        "chat",
        ("aider-chat",),
        (
            "aider",
            "--model",
            "openai/{model}",
            "--no-git",
            "--yes-always",
            "--no-check-update",
            "--analytics-disable",
            "--no-show-model-warnings",
            "--map-tokens",
            "0",
            "--message",
            "{task}",
            "notes.py",
        ),
        python=True,
        env=_OPENAI,
        has_tools=False,
    ),
    Agent(
        "gptme",
        "chat",
        ("gptme",),
        ("gptme", "-n", "-m", "local/{model}", "--no-confirm", "--tool-format", "tool", "-t", "shell", "{task}"),
        python=True,
        env=_OPENAI,
    ),
    Agent(
        "mini-swe-agent",
        "chat",
        ("mini-swe-agent", "mcp"),
        ("mini", "-m", "openai/{model}", "-t", "{task}", "-y", "-l", "0", "--exit-immediately"),
        python=True,
        env=_OPENAI | {"MSWEA_CONFIGURED": "true", "MSWEA_COST_TRACKING": "ignore_errors"},
    ),
)


def run(agent: Agent, environment: Environment, server: Mapping[str, str], home: Path, task: str) -> str:
    """What it prints, its errors too. `server`: base, key and model; `home`: a folder that is made for it."""
    values = {"{home}": str(home), "{task}": task} | {f"{{{name}}}": value for name, value in server.items()}
    work = home / "work"
    work.mkdir(parents=True)
    (work / "notes.py").write_text("")
    for name, text in agent.files.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_filled(text, values))
    variables = {name: _filled(value, values) for name, value in agent.env.items()}
    variables |= {"PATH": environment.path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "dumb"}
    said = ""
    try:
        for command in (*agent.first, agent.command):
            said += _said([_filled(word, values) for word in command], work, variables)
    finally:
        _end_all(home)
    return said


def _said(command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> str:
    program = shutil.which(command[0], path=variables["PATH"])
    assert program, f"{command[0]} was not installed"
    with subprocess.Popen(
        [program, *command[1:]],
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            said, _ = process.communicate(timeout=_RUN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            said = f"it did not end within {_RUN_S} s"
    return said


def _end_all(home: Path) -> None:
    """Whatever still runs with this home: agents leave servers behind, in sessions of their own."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("HOME") == str(home):
                process.kill()


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        text = text.replace(name, value)
    return text
