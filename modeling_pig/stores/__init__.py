"""Store video embeddings and search them: [`VideoIndex`] (`index`) over a [`VideoStore`], which is LanceDB
(`lance_store`) or Milvus (`milvus_store`), with filter conditions (`conditions`) and Parquet files (`transfer`). Knows
no model."""
