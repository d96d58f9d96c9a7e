"""Descriptions of objects in configs and files: annotations, classes, and networks built without weights."""
