"""Join models and indexes: find video files (`find_videos`), cut long videos into segments (`segments`), encode them
into an index (`indexing`), and search indexes (`search`)."""
