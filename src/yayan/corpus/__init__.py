"""From text to batches: read documents and chats, pack them into shards, serve batches of sequences."""
