"""Peers' samplers beside ours; the command is `python benchmarks/peers.py`.

`models` names the networks, `pairs` says what a method of theirs next to ours is, one module a peer makes the pairs,
`modes` prepares networks, `timing` measures in turns, `tables` writes Markdown, `command` reads the command line.
"""
