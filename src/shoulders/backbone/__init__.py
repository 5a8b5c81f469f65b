"""The frozen models: loading, passes, memory. Only here and in retrieval's encoders are Hugging Face's models."""
