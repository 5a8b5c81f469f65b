"""Small trained models that order passages: a retriever's towers, and the re-ranker."""
