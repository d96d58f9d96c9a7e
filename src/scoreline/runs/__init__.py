"""Run directories of all jobs: what each one is, lists of many, comparisons of two, and their removal."""
