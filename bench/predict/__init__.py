"""Before the money is spent: will it fit, and how fast can it be at best.

weightless.py   a source that has a model's shapes and no weights
simulation.py   a technique's own code, run on tensors without contents: what lives when, what is computed
operations.py   which operations are computed truly, and what each asks of a device
heap.py         which bytes the C library keeps free beside them (CPU)
segments.py     the same of torch's caching allocator (CUDA); holes.py: what both search
devices.py      how much memory a device has, how fast it reads and computes: listed or measured
prediction.py   all of it together: a peak by parts, a time, what fits
pace.py         how long a step takes beside what the limits allow, by other cells
check.py        predictions beside what stored records measured
"""
