"""OpenAI's Responses: items in, items out, each event numbered, and answers that can be asked for again."""
