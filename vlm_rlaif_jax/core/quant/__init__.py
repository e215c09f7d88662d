"""4-bit weights: NF4 with double quantization as in QLoRA, and plain int4.

A quantized weight is a small pytree in the place of an array. It can be stacked over
layers and scanned, sharded, donated and saved. Its operations are `product` and
`dequantize`; it never gets a gradient.
"""
