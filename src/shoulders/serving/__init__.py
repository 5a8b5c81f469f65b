"""Serving: an HTTP server with OpenAI's interface over one backbone, and the load that measures it."""
