"""The log in, a folder of Parquet archives by day and source out, each frame in exactly one file.

`writing` takes the log's frames batch by batch, `tidying` joins small files and removes old ones, `service` goes round.
Reading the folder back is `streams.archives.folder`.
"""
