"""From video files to embeddings (`encode`), into a store (`index`), and from a sentence to an answer (`search`)."""
