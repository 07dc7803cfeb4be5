"""Encode texts and videos into embeddings, and load the models that do so. Independent of indexes.

`texts` and `videos` use a model in torch; `text_encoder` computes the text tower in NumPy.
"""
