"""The layers: fractional max pooling, and depthwise and pointwise convolutions that train fast."""
