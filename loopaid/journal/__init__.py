"""An append-only, segmented log with one writer. `store.open_store` is the way in; `record` documents the format."""
