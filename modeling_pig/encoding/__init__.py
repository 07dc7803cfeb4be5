"""Encode texts and videos into embeddings: model loading (`loading`), texts (`texts`, and `text_encoder` without torch)
and videos (`videos`). Knows no index."""
