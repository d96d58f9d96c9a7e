"""Images per second of peers' samplers beside ours: `python benchmarks/peers.py [--peers DIR]`.

One run, the same network, weights, mode, batch, noise and number of network calls (counted) on both sides, each method
of theirs next to the same one of ours. diffusers is used where it is installed; k-diffusion, EDM, diff-sampler, DEIS
and SciRE are run from clones in DIR, called `owner+name` or `name`; those that are not there are rows without numbers.
Times are taken in turns: bare network calls, theirs, ours. Ratios are of turns next to each other, medians of all
rounds, plus or minus half of the interquartile range. Ours includes making the noise and the checks of
`sampling.generate`; theirs is given the noise. A second table runs the fastest peer and ours in other modes of the
network (`--modes`, the rows of `peers/modes.py`), a third projects 50,000 images from a steady run (`--seconds 60`).
The mode `sample.py` is that of the command without a key. Lines on stderr follow each measurement; `--quick` takes
fewer rows and rounds. `--model ddpmpp --device cuda` is for a GPU; `--self-check` runs the same code at tiny sizes on
the CPU.
"""

import sys

from peers.command import main

if __name__ == "__main__":
    main(sys.argv[1:])
