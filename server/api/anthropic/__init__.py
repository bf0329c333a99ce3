"""Anthropic's Messages: blocks in, blocks out, thinking that round-trips, errors in their own envelope."""
