"""OpenAI request and response handling that is not I/O."""
