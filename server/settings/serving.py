"""What clients meet: where the server listens, who may call it, and the bounds on one request."""

from __future__ import annotations

from typing import Literal

from pydantic import ByteSize, Field, SecretStr, field_validator

from server.settings import keys, names
from server.settings.section import Section, Size


class ServerSettings(Section):
    """The HTTP side."""

    host: str = Field(
        "127.0.0.1", description="Address to listen on; localhost is both of loopback's, any other needs a key."
    )
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 lets the system choose one.")
    api_key: SecretStr | None = Field(
        None, description="Bearer token that clients must send; off loopback it or api_keys is required."
    )
    api_keys: dict[str, SecretStr] = Field(
        {}, description="More keys, by the names of their clients; a key may be given as sha256:HEX."
    )
    allowed_hosts: list[str] = Field(
        [], description="Host names answered beside loopback names and `host`; stops DNS rebinding."
    )
    allowed_origins: list[str] = Field(
        [],
        description='Origins of pages that may call the API; "chrome-extension://*" is any extension, "*" any page.',
    )
    local_origins: bool = Field(
        True, description="Whether loopback pages, on any port, and pages of desktop apps may call unlisted."
    )
    max_body: Size = Field(ByteSize(8 * 10**6), ge=1024, description="Largest request body; larger is 413.")
    body_budget: Size = Field(
        ByteSize(64 * 10**6),
        ge=0,
        description="Request bodies on their way in, of all clients together; beyond is 503.",
    )
    header_timeout_s: float = Field(10, gt=0, description="Time to send a request's headers; stops slowloris clients.")
    body_timeout_s: float = Field(30, gt=0, description="Time to send a request's body; then 408.")
    sse_write_timeout_s: float = Field(
        30, gt=0, description="How long a stream waits for a reader that stalls before its slot is freed."
    )
    sse_ping_s: float = Field(
        15, gt=0, description="Longest silence in a stream; a comment keeps proxies from closing it."
    )
    shutdown_grace_s: float = Field(
        10, ge=0, description="After SIGTERM, how long running streams may finish before an error event."
    )

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None:
            keys.check_key(key)
        return key

    @field_validator("api_keys")
    @classmethod
    def _can_all_be_sent(cls, named: dict[str, SecretStr]) -> dict[str, SecretStr]:
        keys.check_named(named)
        return named

    @field_validator("host")
    @classmethod
    def _can_be_listened_on(cls, host: str) -> str:
        if host and not names.is_host(host):
            raise ValueError(f"'{host}' is no address to listen on: write it without scheme, port or brackets")
        return host

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, listed: list[str]) -> list[str]:
        names.check_hosts(listed)
        return listed

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, listed: list[str]) -> list[str]:
        names.check_origins(listed)
        return listed

    @property
    def key_digests(self) -> dict[str, bytes]:
        """The sha256 of each key by its client's name; empty when the server is open."""
        return keys.digests(self.api_key, self.api_keys)

    @property
    def own_key(self) -> str | None:
        """What this machine's own commands send."""
        return keys.sendable(self.api_key, self.api_keys)


class LimitSettings(Section):
    """Bounds on one request; beyond each is a 400 that says so."""

    max_messages: int = Field(2048, ge=1, description="Messages in one conversation.")
    max_json_depth: int = Field(64, ge=4, description="Nesting of the JSON body; deeper crashes parsers.")
    max_json_items: int = Field(
        400_000, ge=1, description="Values in the JSON body; a prompt of token ids has one for each."
    )
    max_json_containers: int = Field(50_000, ge=1, description="Lists and objects in the JSON body.")
    max_json_slow_numbers: int = Field(
        1000, ge=0, description="Numbers with an exponent or over 17 digits in the JSON body; parsers are slow on them."
    )
    max_stop: int = Field(16, ge=1, description="Stop strings; OpenAI allows 4, agents send more.")
    max_stop_chars: int = Field(256, ge=1, description="Length of one stop string.")
    max_logit_bias: int = Field(300, ge=1, description="Entries in logit_bias.")
    max_top_logprobs: int = Field(20, ge=0, description="Alternatives per token, as at OpenAI.")
    max_bad_words: int = Field(64, ge=0, description="Strings in bad_words.")
    max_tools: int = Field(512, ge=1, description="Tools per request; OpenAI allows 128, agents send more.")
    images: Literal["refuse", "omit"] = Field(
        "refuse", description='"omit" puts a note in the place of images, which no model here sees, instead of a 400.'
    )
    max_n: int = Field(8, ge=1, description="Choices per request; each takes a slot.")
    stored_responses: Size = Field(
        ByteSize(64 * 10**6), ge=0, description="Memory for responses that clients may ask for again; 0 keeps none."
    )
    stored_response_age_s: float = Field(86400, gt=0, description="How long such a response is kept.")
    max_grammar_bytes: Size = Field(
        ByteSize(10**6), ge=1024, description="A grammar: all tools and the shape of the answer, schemas included."
    )
    grammar_timeout_s: float = Field(
        5, gt=0, description="Longest time to make a grammar of a request's tools and the shape of its answer."
    )
    text_timeout_s: float = Field(
        15,
        gt=0,
        description="Longest processor time to render and tokenize one request; then it is a 400 and its process ends.",
    )
    text_memory_limit: Size = Field(
        ByteSize(4 * 10**9),
        ge=2**28,
        description="Memory to render and tokenize one request, the tokenizer included.",
    )
