"""Join models and indexes: find video files (`find_videos`), split long videos into segments (`segments`), encode
them into an index (`indexing`), and search indexes (`search`)."""
