"""A training run without a model: a state known in closed form, kept and saved by the product's own code.

`state` is the state, `worker` a rank's loop, `nursery` the processes (supervisor, agents, workers), forked from one
that has imported torch, and `campaign` kills them at random.
"""
