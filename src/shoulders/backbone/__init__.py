"""The frozen models: loading, passes, memory, decoding. The only folder that knows Hugging Face model classes."""
