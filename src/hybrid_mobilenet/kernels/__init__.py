"""Forward and backward of what torch has not, or not fast.

Fractional max pooling is here once per kind of device, as the same two functions: in `reference`, which is the one to
read first, `cpu` and `cuda`. `depthwise`, `batch_norm` and `pointwise` make training fast on a CPU; elsewhere torch's
own serve.
"""
