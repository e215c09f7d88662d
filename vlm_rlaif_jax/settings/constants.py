"""Constants that every part of the package and the commands read."""

VIDEO = -200  # the token id of the video slot, where the visual tokens go
PAD = 0  # the token id of padding; also that of <unk>, as in the reference
SIZES = ('tiny', '7b', '13b')  # named networks, see `configs.models`
