"""How families of models write reasoning and tool calls: one file a wire format."""
