"""OpenAI's API: chat completions, completions, embeddings, models and stateless responses.

Each operation has the same story. `reading` turns the body into a checked model of the request,
a module of the operation turns that into a message of ``llm.proto``, `calls` calls the server, and
the operation's module writes the reply. Fields that would change the answer and cannot be honoured
are errors. ``docs/gateway-openai.md`` lists every field.
"""
