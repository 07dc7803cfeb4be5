"""Store embeddings of videos and search them.

[`VideoIndex`] (`index`) checks its arguments and delegates to a [`VideoStore`] (`video_store`), which is LanceDB
(`lance_store`) or Milvus (`milvus_store`). `conditions` holds the filter language, `transfer` reads and writes Parquet
files. The package imports no model and no encoder.
"""
