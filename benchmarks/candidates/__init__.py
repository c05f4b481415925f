"""One file a library, each with `make(work, devices)`.

It returns two functions, "forward" and "training step", which run all steps of the work
once and return when the results are there. Forward gives logits without dropout; a
training step ends with an update of all parameters by Adam.
"""
