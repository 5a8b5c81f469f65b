"""Serving over HTTP: one frozen model, any number of scaffolds, OpenAI's API beside our own."""
