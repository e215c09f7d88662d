"""Weights in 4 bits: NF4 with double quantization as in QLoRA, and plain int4.

A quantized weight is a pytree leaf-of-leaves that stands where an array would. It can
be stacked over layers and scanned, sharded, donated, saved; what may be done with it is
`product` (and `dequantize`), and no gradient ever reaches it.
"""
