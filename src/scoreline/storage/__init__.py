"""Files: bounded reading, atomic writing, downloads, locks, resumable parts, run histories and their schemas."""
