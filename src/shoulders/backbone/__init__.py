"""The frozen models: loading, passes and their memory, encoders, tokens. Hugging Face's model classes stay here."""
